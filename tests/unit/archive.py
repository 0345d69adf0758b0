"""Segments in a dict, and what is asked of them: the part of `app.segments` without a database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from models.agent import AgentRecord
from models.history import History, NotAtHand, Wanted
from models.sealing import Sealing, seal
from models.segment import Segment, origin_of, tree_of

T = TypeVar("T")


class Archive:
    """Every segment that was ever stored."""

    def __init__(self) -> None:
        self.segments: dict[str, Segment] = {}
        self.asked_for = 0

    def sealed(self, record: AgentRecord, threshold: int) -> AgentRecord:
        """The agent with its older steps sealed, if it has too many, and nothing at hand."""
        sealing = seal(record, threshold)
        return record if sealing is None else self.kept(sealing)

    def kept(self, sealing: Sealing) -> AgentRecord:
        """What is left of an agent when its segments are stored."""
        self.segments |= sealing.segments
        return sealing.record.bare()

    def asked(self, record: AgentRecord, question: Callable[[AgentRecord], T]) -> T:
        """What a question comes to, with as much of the history as it takes."""
        while True:
            try:
                return question(record)
            except NotAtHand as lacking:
                self.asked_for += 1
                record = self.supplied(record, lacking.wanted)

    def supplied(self, record: AgentRecord, wanted: Wanted) -> AgentRecord:
        """The agent with what is wanted; each time it is something that was not at hand."""
        own = {origin_of(kept.id) for kept in record.descriptors}
        family = [segment for segment in self.segments.values() if origin_of(segment.id) in own]
        found = History(
            {key: replace(self.segments[key]) for key in wanted.segments},
            {key: tree_of(self.segments[key].outside()) for key in wanted.trees},
            {step: frozenset(one.id for one in family if step in one.steps) for step in wanted.steps},
            {turn: frozenset(one.id for one in family if turn in one.outside()["turns"]) for turn in wanted.turns},
        )
        held = record.history
        assert not (wanted.segments & held.segments.keys() or wanted.trees & held.trees.keys())
        assert not (wanted.steps & held.steps.keys() or wanted.turns & held.turns.keys())
        return record.model_copy(update={"history": held | found})
