"""Bringing a copy of an agent up to date by a change event, beside reading it again; and what a watcher costs."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bson.raw_bson import RawBSONDocument

from app.api.shown import Showcase, Shown, show
from app.cache import Cache, Entry
from app.clock import SystemClock
from app.feed import log_topic
from app.filling import Filling
from app.runtime import Runtime
from models.agent import AgentRecord
from models.event import Event, Time
from models.tenant import ANONYMOUS
from scripts.bench.event_replay import event_of, held, microseconds_each, recorded
from scripts.bench.lab import Lab
from scripts.bench.material import hold, make_agent
from scripts.bench.report import Bound, Finding, Row, compared
from scripts.bench.rounds import Turn, Variant, milliseconds_each, take_turns
from scripts.bench.scale import Scale
from scripts.bench.ways import by_service

NAME = "patch"
_PATCH = "patch by the event"
_RELOAD = "read again"
_LONG = 500
_EXPECTED = {_RELOAD: Bound("≥", 20.0)}
_LOG = log_topic(ANONYMOUS.tenant)
_ABSENT = "not in memory"
_ABOUT = (
    "From an append of a 1 KB step to the next answer, in process. 'patch by the event': the copy in memory is brought "
    "up to date by the change event, and the answer is made from the last one. 'read again': an agent as long as the "
    "other is half-way is read from the database as a reader who misses would, decoded, and encoded whole. Expected of "
    "the longer agent. The rows in µs, for information: processor time of a watcher for each such event, from the "
    "bytes that the driver gives it on: decoded, told to the cache, the change log's queue and the feed; without "
    "writing the log, and without encoding and sending to subscribers."
)


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure a long and a short agent."""
    rows: list[Row] = []
    async with lab.runtime() as runtime:
        for steps in (_LONG, 18):
            agent = await make_agent(runtime.agents, steps)
            changes = await recorded(runtime, agent, by_service(runtime.agents), scale.events)
            base = agent.model_copy(update={"size_bytes": agent.stored_bytes()})
            rows += await _answers(runtime, base, changes, steps, scale)
            rows += await _watcher(runtime, base, changes, steps, scale)
    return Finding(NAME, _ABOUT, rows)


async def _answers(
    runtime: Runtime, base: AgentRecord, changes: Sequence[RawBSONDocument], steps: int, scale: Scale
) -> list[Row]:
    events = [event_of(change) for change in changes[: scale.calls]]
    as_long = await make_agent(runtime.agents, steps + len(events) // 2)
    for agent in (base, as_long):
        await hold(runtime, agent)
    variants = [
        Variant(_PATCH, _by_patch(runtime, base, events)),
        Variant(_RELOAD, _by_reload(runtime, as_long.id, events[-1].time, scale)),
    ]
    figures = await take_turns(variants, scale.rounds)
    expected = _EXPECTED if steps == _LONG else None
    return compared(f"{steps} steps", "ms", figures, against=_PATCH, expected=expected)


def _by_patch(runtime: Runtime, base: AgentRecord, events: Sequence[Event]) -> Turn:
    clock = SystemClock()

    async def turn() -> list[float]:
        settings = runtime.settings
        cache = Cache(clock, limit_bytes=settings.cache_bytes, idle_seconds=settings.cache_idle_seconds)
        cache.opened()
        cache.beat(clock.monotonic(), events[0].time)
        held(cache, base)
        shown = _answer(cache, runtime.filling, base.id)
        taken: list[float] = []
        for event in events:
            cache.beat(clock.monotonic(), event.time)
            started = time.perf_counter()
            cache.heard(event)
            shown = _answer(cache, runtime.filling, base.id)
            taken.append((time.perf_counter() - started) * 1000)
        assert shown.version == events[-1].version
        return taken

    return turn


def _answer(cache: Cache, filling: Filling, key: str) -> Shown:
    """The answer from memory, kept for the next one, as the hot read does it."""
    entry = cache.look(key)
    assert entry is not None
    return Showcase(cache, filling).of(entry)


def _by_reload(runtime: Runtime, key: str, heard: Time, scale: Scale) -> Turn:
    async def reload() -> Shown:
        record = await runtime.store.read(key, since=heard)
        return show(Entry(record, 0.0, 0), None, runtime.filling)

    return lambda: milliseconds_each(reload, scale.calls)


async def _watcher(
    runtime: Runtime, base: AgentRecord, changes: Sequence[RawBSONDocument], steps: int, scale: Scale
) -> list[Row]:
    subscribed = {"no subscriber": (), "subscriber of the agent": (base.id,), "of the log": (_LOG,)}
    variants = [
        Variant(_ABSENT, _watching(runtime, changes, [], ())),
        *(Variant(name, _watching(runtime, changes, [base], topics)) for name, topics in subscribed.items()),
    ]
    figures = await take_turns(variants, scale.rounds)
    return compared(f"{steps} steps, watcher", "µs", figures, against=_ABSENT)


def _watching(
    runtime: Runtime, changes: Sequence[RawBSONDocument], memory: Sequence[AgentRecord], topics: Sequence[str]
) -> Turn:
    async def turn() -> list[float]:
        return [await microseconds_each(runtime, changes, memory, topics)]

    return turn
