"""An agent whose older steps are sealed is, to everybody who asks, the agent that it would be without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.api import views
from models import snapshot, tree
from models.agent import AgentRecord, create
from models.change import Change, fold
from models.errors import HoldfastError
from models.ids import ROOT, WORKSPACE
from models.listing import Window, newest_of, newest_parts, page_of, steps_of
from models.news import steps_since
from models.path import path, stretches, whole
from models.results import put_result, put_workspace, result_of, results_in, results_up, workspace_at
from models.sealing import may_be_due, seal, sealed_at_birth
from models.segment import Descriptor, Step
from tests.unit.archive import Archive
from tests.unit.test_moves import STAMP, Move, appending, applied, moves, names, started, steps

TINY = 400
"""Bytes of a few steps."""


class Twins:
    """The same agent twice: one seals its older steps before each move, with nothing at hand, the other never does."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.plain = self.sealed = started()

    def ask(self, question: Callable[[AgentRecord], Any]) -> Any:
        """What both answer."""
        answer = _outcome(lambda: question(self.plain))
        assert _outcome(lambda: self.archive.asked(self.sealed, question)) == answer
        return answer

    def move(self, move: Move) -> None:
        """Make a move, unless both refuse it in the same words; what it assigns leads where its record is."""
        sealing = seal(self.sealed, TINY)
        begun = self.sealed if sealing is None else self.archive.kept(sealing)
        here = _outcome(lambda: move(self.plain))
        there = _outcome(lambda: self.archive.asked(begun, move))
        if not isinstance(here, Change) or not isinstance(there, Change):
            assert (type(here), str(here)) == (type(there), str(there))
            return
        assert here.kinds == there.kinds
        assert here.told == there.told
        assert _read(self.archive, there.record, here.answer) == _read(self.archive, here.record, there.answer)
        if here.kinds:
            assigned = fold([*([] if sealing is None else [sealing.assigned]), there])
            assert applied(self.sealed.document(), assigned) == there.record.document()
            self.plain, self.sealed = here.record, AgentRecord.of(there.record.document())


def _read(archive: Archive, record: AgentRecord, answer: Any) -> Any:
    """A move's answer, in which a whole agent is what a caller sees of it."""
    return archive.asked(record, seen) if isinstance(answer, AgentRecord) else answer


def _outcome(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except HoldfastError as error:
        return type(error), error.detail, error.fields


def seen(record: AgentRecord) -> Any:
    """All that there is to see of an agent, but for its bytes."""
    parts = snapshot.parts(record)
    return (
        {**views.agent(record, "all"), "size_bytes": 0},
        {**views.agent(record), "size_bytes": 0},
        {**snapshot.frame_of(record)},
        [one for part in parts for one in snapshot.steps_in(record, part)],
        sorted(str(one) for part in parts for one in snapshot.bound_in(record, part)),
        sorted(str(one) for part in parts for one in snapshot.workspaces_in(record, part)),
        path(record),
    )


def pages(record: AgentRecord, window: Window, limit: int) -> list[str]:
    """The steps of a window, page by page."""
    found: list[str] = []
    after: int | None = window.after
    while after is not None:
        page = page_of(record, Window(window.leaf, window.turn, after, window.until, window.since), limit)
        found, after = [*found, *page.steps], page.next_after
        assert len(page.steps) <= limit
    return found


def told(record: AgentRecord, version: int, limit: int) -> list[tuple[int, str, bool]]:
    """The steps since a version, and after which of them a reader may resume."""
    found: list[tuple[int, str, bool]] = []
    after: int | None = 0
    while after is not None:
        news, after = steps_since(record, version, after, limit)
        for each in news:
            ids = [data["id"] for _, data in each.told]
            found += [(each.version, step, step == ids[-1] and not each.goes_on) for step in ids]
    return found


def results(record: AgentRecord) -> dict[str, Any]:
    """All results seen from HEAD."""
    found: dict[str, Any] = {}
    for part in results_up(record):
        found = {**results_in(record, part), **found}
    return found


def assert_newest(twins: Twins, leaf: str | None, limit: int) -> None:
    """The newest steps, taken in one go and in parts."""
    at_once = twins.ask(lambda record: newest_of(record, leaf, limit))
    assert twins.ask(lambda record: newest_of_parts(record, leaf, limit)) == at_once
    steps, cut = at_once
    path = twins.ask(lambda record: [step["id"] for step in ordered(record, leaf)])
    assert [step["id"] for step in steps] == path[max(0, len(path) - limit) :]
    assert (cut is None) == (len(path) <= limit)


def newest_of_parts(record: AgentRecord, leaf: str | None, limit: int) -> tuple[list[Step], int | None]:
    parts, cut = newest_parts(record, leaf, limit)
    return [step for part in parts for step in steps_of(record, part)], cut


def ordered(record: AgentRecord, leaf: str | None) -> list[Step]:
    """All steps, or those of a path, by seq."""
    rows = list(whole(record)) if leaf is None else list(stretches(record, leaf))[::-1]
    return [step for stretch in rows for step in steps_of(record, stretch)]


LINE = [appending([f"s{number}"], advance=True, parent=None, workspace=None) for number in range(6)]
BARE = [
    lambda record, n=n: tree.append(record, [tree.Draft(f"s{n}", {"role": "agent"}, chosen=True)], STAMP)
    for n in range(6)
]
chains = st.builds(
    lambda begun, rest: [*begun, *rest], st.sampled_from([[], LINE, BARE]), st.lists(moves, min_size=4, max_size=24)
)


@settings(max_examples=300, deadline=None)
@given(chains)
def test_sealed_agent_moves_and_reads_as_it_would_unsealed(chain: list[Move]) -> None:
    """Every move, refusals included, then everything that can be asked."""
    twins = Twins(Archive())
    for move in chain:
        twins.move(move)
    twins.ask(seen)
    known = [ROOT, *twins.plain.steps]
    for step in [*known, "s0", "unknown"]:
        twins.ask(lambda record, step=step: record.has(step))
        twins.ask(lambda record, step=step: tree.resolve(record, step))
        twins.ask(lambda record, step=step: result_of(record, step))
    for step in known:
        twins.ask(lambda record, step=step: workspace_at(record, step))
        twins.ask(lambda record, step=step: record.bound(step))
        assert_newest(twins, step, 2)
    for limit in range(5):
        assert_newest(twins, None, limit)
    twins.ask(results)
    for version in range(0, twins.plain.version + 1, 3):
        together = twins.ask(lambda record, version=version: told(record, version, 100))
        assert twins.ask(lambda record, version=version: told(record, version, 2)) == together


@settings(max_examples=150, deadline=None)
@given(
    chains,
    st.none() | steps,
    st.none() | steps,
    st.integers(0, 8),
    st.none() | st.integers(0, 12),
    st.integers(0, 6),
    st.integers(1, 4),
)
def test_pages_of_a_sealed_agent_are_those_of_the_unsealed(
    chain: list[Move], leaf: str | None, turn: str | None, after: int, until: int | None, since: int, limit: int
) -> None:
    """Whatever the window and the page's length."""
    twins = Twins(Archive())
    for move in chain:
        twins.move(move)
    if leaf not in (None, ROOT, *twins.plain.steps):
        return
    window = Window(leaf, turn, after, until, since)
    twins.ask(lambda record: pages(record, window, limit))


@settings(max_examples=150, deadline=None)
@given(chains, steps, chains)
def test_fork_of_a_sealed_agent_lives_like_that_of_the_unsealed(
    chain: list[Move], at: str, further: Sequence[Move]
) -> None:
    """It sees its own path alone, and so does its own fork; what the source does further is nothing to it."""
    twins = Twins(Archive())
    for move in chain:
        twins.move(move)
    for life in (chain, further):
        if at not in (ROOT, *twins.plain.steps):
            at = twins.plain.head
        twins.plain, twins.sealed = (_forked(twins.archive, one, at) for one in (twins.plain, twins.sealed))
        twins.ask(seen)
        for step in (f"s{number}" for number in range(6)):
            twins.ask(lambda record, step=step: record.has(step))
            twins.ask(lambda record, step=step: tree.compare(record, "HEAD", step))
        for move in life:
            twins.move(move)
        twins.ask(seen)


def _forked(archive: Archive, record: AgentRecord, at: str) -> AgentRecord:
    draft = archive.asked(record, lambda known: tree.fork(known, f"{record.id}f", at, None))
    nobody = AgentRecord(id=draft.id, tenant=draft.tenant)
    return AgentRecord.of(create(nobody, draft, STAMP, step_version=1).record.document())


@settings(max_examples=150, deadline=None)
@given(chains, steps, steps)
def test_sealed_paths_differ_as_the_unsealed_do(chain: list[Move], left: str, right: str) -> None:
    twins = Twins(Archive())
    for move in chain:
        twins.move(move)
    twins.ask(lambda record: tree.compare(record, left, right))


@settings(max_examples=60, deadline=None)
@given(chains, names)
def test_agent_born_large_is_sealed_at_once(chain: list[Move], name: str) -> None:
    """As an import is."""
    twins = Twins(Archive())
    for move in chain:
        twins.move(move)
    nobody = AgentRecord(id="t:b", tenant="t")
    draft = twins.plain.model_copy(update={"id": "t:b", "name": name, "version": 0})
    made = create(nobody, draft, STAMP)
    born = sealed_at_birth(made, TINY)
    assert born.sets == {**made.sets, **{field: born.sets[field] for field in ("steps", "results", "sealed")}}
    archive = Archive()
    archive.segments |= {key: segment for key, segment in born.segments.items() if segment is not None}
    twins.plain, twins.sealed, twins.archive = made.record, AgentRecord.of(born.record.document()), archive
    twins.ask(seen)


def chained(count: int, size: int = 100) -> AgentRecord:
    """An agent of so many steps in one line."""
    record = started()
    for number in range(count):
        draft = tree.Draft(f"n{number}", {"role": "agent", "content": "x" * size}, chosen=True)
        record = tree.append(record, [draft], STAMP).record
    return record


def test_sealing_leaves_half_of_the_threshold_and_the_newest_step() -> None:
    record = chained(100)
    sealing = seal(record, 10_000)
    assert sealing is not None
    assert 4_500 < sealing.record.stored_bytes() < 6_500
    assert list(sealing.record.steps)[-1] == "n99"
    assert sum(one.count for one in sealing.record.descriptors) + len(sealing.record.steps) == 100
    assert all(segment.size <= 11_000 for segment in sealing.segments.values())
    assert seal(sealing.record, 10_000) is None
    huge = seal(chained(2, 10_000), 1_000)
    assert huge is not None
    assert list(huge.record.steps) == ["n1"]
    assert seal(huge.record, 1_000) is None


def test_path_over_many_lines_is_followed_without_reading_them() -> None:
    """Whatever its length: what it takes is one descriptor for each."""
    archive, record = Archive(), started()
    for number in range(2_000):
        record = tree.append(record, [tree.Draft(f"n{number}", {"role": "agent"})], STAMP).record
        record = archive.sealed(record, 2_000)
    assert len(record.descriptors) > 50
    way = archive.asked(record, lambda known: list(stretches(known, known.head)))
    assert len(way) == len(record.descriptors) + 1 == len(list(whole(record)))
    assert archive.asked(record, lambda known: workspace_at(known, known.head)) is None
    draft = archive.asked(record, lambda known: tree.fork(known, "t:fork", None, None))
    assert archive.asked_for == 0
    assert len(draft.descriptors) == len(record.descriptors)
    found = archive.asked(record, lambda known: newest_of(known, known.head, 60)[0])
    assert [step["id"] for step in found] == [f"n{number}" for number in range(1_940, 2_000)]
    assert archive.asked_for < 10


@pytest.mark.parametrize("branching", [False, True])
def test_descriptor_says_whether_a_segment_is_one_line(branching: bool) -> None:
    record = chained(40)
    if branching:
        draft = tree.Draft("side", {"role": "agent", "parent_id": "n3"}, chosen=True)
        record = tree.append(record, [draft], STAMP, advance_head=False).record
        for step in range(40):
            record = tree.append(record, [tree.Draft(f"end{step}", {"role": "agent"})], STAMP).record
    sealing = seal(record, 8_000)
    assert sealing is not None
    found = [Descriptor.of(segment) for segment in sealing.segments.values()]
    assert all(one.chain for one in found) is not branching


def test_cheap_question_is_never_no_where_sealing_is_due() -> None:
    archive, record = Archive(), started()
    for number in range(300):
        record = tree.append(record, [tree.Draft(f"n{number}", {"role": "agent"})], STAMP).record
        due = seal(record, 2_000)
        if due is not None:
            assert may_be_due(record, record.stored_bytes(), 2_000)
            record = archive.kept(due)


@pytest.mark.parametrize(
    "bind",
    [lambda record: put_result(record, "new", "n3", 2, STAMP), lambda record: put_workspace(record, 2, STAMP)],
    ids=["result", "workspace"],
)
def test_what_is_bound_to_a_step_in_the_commit_that_seals_it_is_kept(bind: Callable[[AgentRecord], Change]) -> None:
    """Beside what was bound to it before and goes with it: the update may not name a path inside another."""
    archive, record = Archive(), chained(20)
    record = put_result(record, "old", "n3", 1, STAMP).record
    record = tree.checkout(record, STAMP, step="n3").record
    sealing = seal(record, 500)
    assert sealing is not None
    change = archive.asked(archive.kept(sealing), bind)
    assigned = fold([sealing.assigned, change])
    paths = [*assigned.sets, *assigned.drops]
    assert not any(other.startswith(f"{path}.") for path in paths for other in paths)
    after = AgentRecord.of(applied(record.document(), assigned))
    assert archive.asked(after, lambda known: known.bound("n3")) == {"old": 1, **after.results["n3"]}
    assert archive.asked(after, tree.position).workspace == after.results["n3"].get(WORKSPACE)
