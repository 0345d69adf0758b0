"""The main job in one terminal: an agent outlives the replica that serves it.

Imports a trace, lets replica A continue it, kills A in the middle of a write, and proves on replica B that whatever
was acknowledged is there. Everything happens in a temporary data directory, on loopback, through the program's own
command line and HTTP interface; nothing is left behind, also after Ctrl-C.

Usage: python -m scripts.demo [FILE]. Exit code 0 only when every promise held.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import shutil
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
from rich.text import Text

from app.traces import Snapshot, TraceError, read
from scripts.stage import (
    ANSWER_SECONDS,
    READY_SECONDS,
    BrokenPromise,
    House,
    Replica,
    Story,
    finish_undisturbed,
    perform,
    wait_for,
)

EXAMPLE = Path(__file__).parents[1] / "examples" / "fix-the-clock.traj.json"

RUN = secrets.token_hex(2)
"""In the id of each step, so that an agent that went through the demo before can go through it again."""

KILL_AFTER = 25
"""Acknowledged steps before A is killed."""

GO_ON = 25
"""Steps that B adds alone."""

NEVER = 20_000
"""Steps after which a killed replica that still answers is a fault of the demo."""

ANYTHING = TypeVar("ANYTHING")


class Step(msgspec.Struct, frozen=True):
    """What the demo looks at in a step."""

    id: str
    parent_id: str
    content: str | None = None


class Agent(msgspec.Struct, frozen=True):
    """What the demo looks at in an agent."""

    version: int
    head: str
    step_count: int
    steps: list[Step]


@dataclass(frozen=True)
class Cut:
    """How the work with A ended: what it acknowledged, and the step that nobody knows about."""

    acknowledged: list[dict[str, str]]
    unknown: dict[str, str]
    at: float


def main() -> int:
    """Tell the story; its exit code."""
    options = argparse.ArgumentParser(prog="python -m scripts.demo", description="An agent outlives its replica.")
    options.add_argument("file", nargs="?", type=Path, default=EXAMPLE, help="a trace (default: the project's example)")
    file = options.parse_args().file
    return perform(lambda story: _tell(story, file))


def _tell(story: Story, file: Path) -> None:
    try:
        traces = read(file)
    except TraceError as error:
        raise BrokenPromise(str(error)) from None
    first = traces[0]
    steps = first.export.get("steps", []) if isinstance(first, Snapshot) else first.steps
    story.console.print(Text("Holdfast: an agent outlives the replica that serves it", style="bold cyan"))
    with ExitStack() as closing:
        folder = Path(tempfile.mkdtemp(prefix="holdfast-demo-"))
        closing.callback(shutil.rmtree, folder, ignore_errors=True)
        house = House(folder, story)
        story.chapter("A database of its own, in a temporary folder")
        closing.enter_context(house.database())
        replicas = [Replica(name, house) for name in "AB"]
        for replica in replicas:
            closing.callback(replica.close)
        closing.callback(finish_undisturbed)
        facts = _play(story, house, replicas, file, len(steps))
        story.chapter("Everything is put away")
    story.close(facts)


def _play(story: Story, house: House, replicas: list[Replica], file: Path, steps: int) -> list[tuple[str, str]]:
    """Everything between the start of the database and its end; what the closing summary says."""
    a, b = replicas
    agent = _import(story, house, file, steps)
    story.chapter("Two replicas on the same database; neither owns the agent")
    a.start()
    b.start()
    cut = _kill_in_the_middle(story, a, agent)
    _prove_nothing_is_lost(story, b, agent, cut, steps)
    pause = _settle(story, b, agent, cut)
    written = [*cut.acknowledged, cut.unknown, *_go_on(story, b, agent, len(cut.acknowledged) + 2)]
    story.chapter("A is started again and compared with B")
    a.start()
    version = _compare(story, a, b, agent)
    _prove_order(story, a, agent, steps, [step["id"] for step in written])
    return [
        ("steps in the trace", f"{steps}"),
        ("acknowledged by A before it was killed", f"{len(cut.acknowledged)}"),
        ("in flight at that moment, settled on B", "1"),
        ("added by B alone", f"{GO_ON}"),
        ("found on both replicas", f"{steps + len(written)}, at version {version}"),
        ("lost or doubled", "0"),
        ("from the kill to B's next acknowledged step", f"{pause * 1000:.0f} ms"),
    ]


def _import(story: Story, house: House, file: Path, steps: int) -> str:
    story.chapter("An agent that began its work elsewhere is imported")
    agent, *name, counted = (house.run("import", str(file)) or [""])[0].split() or ["", ""]
    story.promise(
        f"{' '.join(name)} has all {steps} steps of {file.name}.",
        kept=counted == str(steps),
        otherwise=f"The file holds {steps} steps, but the import told of {counted or 'none'}.",
    )
    return agent


def _kill_in_the_middle(story: Story, a: Replica, agent: str) -> Cut:
    story.chapter("A continues the agent, step by step, and is killed in the middle of it")
    acknowledged: list[dict[str, str]] = []
    with ThreadPoolExecutor(1) as pool:
        try:
            work = pool.submit(_append_until_silence, a, agent, acknowledged)
            wait_for(
                lambda: work.done() or len(acknowledged) >= KILL_AFTER,
                READY_SECONDS,
                f"A did not acknowledge {KILL_AFTER} steps within {READY_SECONDS:.0f} s.",
            )
            _fail_early(work)
            time.sleep(random.uniform(0, 0.005))  # so that the cut falls anywhere in a request
            at = time.monotonic()
        finally:
            a.kill()
        unknown = work.result(ANSWER_SECONDS * 2)
    story.tell(f"SIGKILL after {len(acknowledged)} acknowledged steps.")
    story.tell(f"One more, '{unknown['id']}', was under way: nobody can say yet whether it was written.")
    return Cut(acknowledged, unknown, at)


def _append_until_silence(a: Replica, agent: str, acknowledged: list[dict[str, str]]) -> dict[str, str]:
    """Append one step after the other, each under an id of ours; the first that gets no answer is returned."""
    for number in range(1, NEVER):
        step = _draft(number)
        try:
            _append(a, agent, step)
        except httpx.TransportError:
            return step
        acknowledged.append(step)
    raise BrokenPromise("Replica A went on answering after it had been killed.")


def _prove_nothing_is_lost(story: Story, b: Replica, agent: str, cut: Cut, steps: int) -> None:
    story.chapter("B, which wrote none of this, is asked for the agent")
    found, _ = _read(b, agent)
    contents = {step.id: step.content for step in found.steps}
    present = [step for step in cut.acknowledged if contents.get(step["id"]) == step["content"]]
    story.promise(
        f"Acknowledged by A: {len(cut.acknowledged)}. Found on B, word for word: {len(present)}.",
        kept=len(present) == len(cut.acknowledged),
        otherwise=f"A acknowledged {len(cut.acknowledged)} steps, and B knows only {len(present)} of them.",
    )
    extra = found.step_count - steps - len(cut.acknowledged)
    told = cut.unknown["id"] in contents
    story.promise(
        f"Of the one in flight: {'it is there.' if told else 'no trace so far.'} Nothing else is there.",
        kept=extra == int(told),
        otherwise=f"B holds {extra} steps more than A acknowledged, and only one was under way.",
    )


def _settle(story: Story, b: Replica, agent: str, cut: Cut) -> float:
    """Send the unknown step again, to B; seconds since the kill."""
    story.tell("Its id was chosen by us, so it is simply sent again, now to B:")
    new = _append(b, agent, cut.unknown)
    pause = time.monotonic() - cut.at
    if new:
        sentence = "B answers 201: A died before it was written; now it is."
    else:
        sentence = "B answers 200: A had written it and only its answer was lost; it is not written twice."
    story.promise(sentence, kept=True, otherwise="")
    return pause


def _go_on(story: Story, b: Replica, agent: str, first: int) -> list[dict[str, str]]:
    story.chapter("The work goes on, on B")
    more = [_draft(number) for number in range(first, first + GO_ON)]
    new = sum(_append(b, agent, step) for step in more)
    story.promise(
        f"B acknowledged {new} further steps.",
        kept=new == len(more),
        otherwise=f"Only {new} of {len(more)} steps that were never sent before were new to B.",
    )
    return more


def _compare(story: Story, a: Replica, b: Replica, agent: str) -> int:
    """Demand the same agent of both; its version."""
    (seen, on_a), (_, on_b) = _read(a, agent), _read(b, agent)
    story.promise(
        f"A and B answer the same agent, field by field, at version {seen.version}.",
        kept=on_a == on_b,
        otherwise="A and B answer different agents.",
    )
    return seen.version


def _prove_order(story: Story, replica: Replica, agent: str, steps: int, sent: list[str]) -> None:
    """Demand that the path ends with what was sent, once each, and holds nothing else beyond the trace."""
    found, _ = _read(replica, agent)
    tail = found.steps[-len(sent) :]
    chained = all(step.parent_id == before.id for before, step in pairwise(tail))
    story.promise(
        f"All {len(sent)} appended steps are there once, in the order in which they were sent.",
        kept=[step.id for step in tail] == sent and chained and found.step_count == steps + len(sent),
        otherwise="The appended steps are not, once each and in order, the end of the agent's path.",
    )


def _read(replica: Replica, agent: str) -> tuple[Agent, Any]:
    """The agent as it is now, asked past every cache: what the demo looks at, and the whole answer."""
    answer = replica.client.get(
        f"/v1/agents/{agent}",
        params={"steps": "path", "steps_limit": "10000"},
        headers={"Cache-Control": "no-cache"},
    )
    replica.expect(answer, 200)
    return msgspec.json.decode(answer.content, type=Agent), json.loads(answer.content)


def _append(replica: Replica, agent: str, step: dict[str, str]) -> bool:
    """Append a step under its own id; whether it was new (and not there already, with the same content)."""
    answer = replica.client.post(f"/v1/agents/{agent}/steps", json=step)
    replica.expect(answer, 200, 201)
    return answer.status_code == 201


def _draft(number: int) -> dict[str, str]:
    return {
        "id": f"demo-{RUN}-{number}",
        "role": "agent",
        "content": f"Entry {number} of my log: still at work, whoever serves me.",
    }


def _fail_early(work: Future[ANYTHING]) -> None:
    """Raise what the work raised, or say that it ended too soon."""
    if work.done():
        work.result()
        raise BrokenPromise("Replica A stopped answering before it was killed.")


if __name__ == "__main__":
    sys.exit(main())
