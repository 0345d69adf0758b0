"""What is appended and read: steps of 1 KB of JSON, and agents that have some already."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from app.agents import Agents
from app.api import views
from app.lanes import Terms
from app.runtime import Runtime
from models.agent import AgentRecord
from models.tenant import ANONYMOUS
from scripts.bench.peers_worker.words import MESSAGE_BYTES, vocabulary

Message = dict[str, str]

_PROSE = (
    "The build fails in the second stage: the lock file names a wheel that the index no longer has. I will pin the "
    "version that was there yesterday, run the tests of the module that imports it, and look at the trace again. "
)
_BATCH = 100
SHORT_STEPS = 15
LONG_STEPS = 415
"""Agents whose JSON takes about 18 KB and 500 KB."""

GIVEN: dict[str, Any] = {
    "role": "agent",
    "content": (_PROSE * 4)[:670],
    "tool_calls": [{"id": "call_1", "name": "shell", "input": {"command": "make test", "timeout_seconds": 60}}],
    "usage": {"input_tokens": 5120, "output_tokens": 214, "cost_usd": 0.0187},
    "source": "bench",
    "data": {"attempt": 1, "note": _PROSE[:110]},
}
"""A step as a caller sends it: 1 024 bytes of JSON."""


async def hold(runtime: Runtime, agent: AgentRecord) -> None:
    """Bring into memory what the agent's answer takes beside its document."""
    await runtime.filling.asked(agent, views.agent)


async def make_agent(agents: Agents, steps: int) -> AgentRecord:
    """A new agent with that many steps, made through the front door."""
    made = await agents.create(ANONYMOUS, {"name": "bench"}, Terms(), steps=[GIVEN] * min(steps, _BATCH))
    agent = made.record.name_in_tenant
    for done in range(_BATCH, steps, _BATCH):
        batch = [GIVEN] * min(_BATCH, steps - done)
        made = await agents.append(ANONYMOUS, agent, batch, Terms(), advance_head=True)
    return made.record.bare()


def contexts_of(steps: int) -> list[list[Message]]:
    """The messages that each step sends: those of the one before and two more, about 1 KB each."""
    chance = random.Random(1)
    words = vocabulary(chance)
    messages = [_message(chance, words, number) for number in range(2 * steps)]
    return [messages[: 2 * number + 2] for number in range(steps)]


def _message(chance: random.Random, words: Sequence[str], number: int) -> Message:
    text = " ".join(chance.choices(words, k=MESSAGE_BYTES // 6))
    return {"role": "assistant" if number % 2 else "user", "content": text}
