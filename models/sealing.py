"""Sealing: how an agent that grew too large for one document hands its older steps over to segments. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import bson

from models.agent import AgentRecord
from models.change import Assignments, Change
from models.history import History
from models.segment import Descriptor, Segment, Step

SEAL_BYTES = 256 * 1024
"""BSON bytes of steps in the document over which the older half is sealed, unless a setting says otherwise."""

_DESCRIPTOR_BYTES = 160
"""What a descriptor takes at least."""


@dataclass(frozen=True, slots=True)
class Sealing:
    """The agent with its older steps sealed, what leads there, and the segments to be stored before."""

    record: AgentRecord
    assigned: Assignments
    segments: Mapping[str, Segment]


def may_be_due(record: AgentRecord, size: int, threshold: int) -> bool:
    """Whether an agent of this size may have more bytes of steps than the threshold; a cheap question."""
    return size - _DESCRIPTOR_BYTES * len(record.sealed) > threshold


def seal(record: AgentRecord, threshold: int) -> Sealing | None:
    """Seal the oldest steps until no more than half of the threshold stays; None while the steps don't exceed it.

    The newest step always stays. What is bound to a step goes with it.
    """
    steps = dict(sorted(record.steps.items(), key=lambda step: int(step[1]["seq"])))
    sizes = {step: _bytes({step: body, "": record.results.get(step)}) for step, body in steps.items()}
    excess = sum(sizes.values()) - threshold // 2
    if excess <= threshold - threshold // 2 or len(steps) < 2:
        return None
    moved: dict[str, Step] = {}
    for step in list(steps)[:-1]:
        if excess <= 0:
            break
        moved[step] = steps[step]
        excess -= sizes[step]
    segments = [
        Segment.made(record.id, part, {step: record.results[step] for step in part if step in record.results})
        for part in _parts(moved, sizes, threshold)
    ]
    return _sealing(record, segments)


def sealed_at_birth(created: Change, threshold: int) -> Change:
    """The creation of an agent, its older steps sealed where it begins with too many."""
    sealing = seal(created.record, threshold)
    if sealing is None:
        return created
    sets = {**created.sets, **{field: getattr(sealing.record, field) for field in ("steps", "results", "sealed")}}
    segments = {**created.segments, **sealing.segments}
    return replace(created, record=sealing.record, sets=sets, answer=sealing.record, segments=segments)


def _sealing(record: AgentRecord, segments: list[Segment]) -> Sealing:
    kept = [Descriptor.of(segment) for segment in segments]
    sealed = {str(one.from_seq): one.stored() for one in kept}
    gone = {step for segment in segments for step in segment.steps}
    bound = {step for segment in segments for step in segment.results}
    fields = {
        "steps": {step: body for step, body in record.steps.items() if step not in gone},
        "results": {step: values for step, values in record.results.items() if step not in bound},
        "sealed": {**record.sealed, **sealed},
        "history": record.history | History({segment.id: segment for segment in segments}),
        "size_bytes": None,
    }
    sets = {f"sealed.{number}": each for number, each in sealed.items()}
    drops = {f"steps.{step}" for step in gone} | {f"results.{step}" for step in bound}
    by_id = {segment.id: segment for segment in segments}
    return Sealing(record.model_copy(update=fields), Assignments(sets, frozenset(drops)), by_id)


def _parts(steps: Mapping[str, Step], sizes: Mapping[str, int], limit: int) -> Iterator[dict[str, Step]]:
    """The steps in parts of no more than so many bytes each, or of a single step."""
    part: dict[str, Step] = {}
    size = 0
    for step, body in steps.items():
        if part and size + sizes[step] > limit:
            yield part
            part, size = {}, 0
        part[step] = body
        size += sizes[step]
    if part:
        yield part


def _bytes(value: Any) -> int:
    return len(bson.encode(value))
