"""The moves of an agent: what they assign is what their record says, one by one and folded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import bson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import profile, results, tree
from models.agent import AgentRecord, create, delete
from models.change import Assignments, Change, Stamp, fold
from models.errors import HoldfastError
from models.ids import ROOT
from models.json import same
from models.path import path
from models.settings import DEFAULTS, check_settings, with_defaults

STAMP = Stamp(datetime(2026, 1, 1, tzinfo=UTC), "key")
Move = Callable[[AgentRecord], Change]


def applied(document: dict[str, Any], assigned: Assignments) -> dict[str, Any]:
    """The document after `$set` and `$unset`, as the database carries them out."""
    after = copy.deepcopy(document)
    for place in assigned.drops:
        *way, last = place.split(".")
        holder = after
        for part in way:
            holder = holder.get(part, {})
        holder.pop(last, None)
    for place, value in assigned.sets.items():
        *way, last = place.split(".")
        holder = after
        for part in way:
            holder = holder.setdefault(part, {})
        holder[last] = copy.deepcopy(value)
    return after


def started() -> AgentRecord:
    """A new agent."""
    return create(AgentRecord(id="t:a", tenant="t"), AgentRecord(id="t:a", tenant="t"), STAMP).record


names = st.sampled_from(["main", "a.b", "$x", "side"])
steps = st.sampled_from([ROOT, *(f"s{n}" for n in range(6))])
values = (
    st.none() | st.integers(0, 2) | st.dictionaries(st.sampled_from(["a.b", "$x", ""]), st.integers(0, 1), max_size=2)
)


def appending(ids: Sequence[str], advance: bool, parent: str | None, workspace: Any) -> Move:
    given = {"role": "user", "workspace": workspace, **({} if parent is None else {"parent_id": parent})}
    drafts = [
        tree.Draft(ids[0], given, chosen=True),
        *(tree.Draft(step, {"role": "agent"}, chosen=True) for step in ids[1:]),
    ]
    return lambda record: tree.append(record, drafts, STAMP, advance_head=advance)


fresh = st.lists(st.sampled_from([f"s{n}" for n in range(6)]), min_size=1, max_size=3, unique=True)
moves = st.one_of(
    st.builds(appending, fresh, st.booleans(), st.none() | steps, values),
    steps.map(lambda step: lambda record: tree.checkout(record, STAMP, step=step)),
    names.map(lambda name: lambda record: tree.checkout(record, STAMP, branch=name)),
    st.tuples(names, steps).map(lambda to: lambda record: tree.set_branch(record, *to, STAMP)),
    names.map(lambda name: lambda record: tree.delete_branch(record, name, STAMP)),
    steps.map(lambda turn: lambda record: tree.revert(record, turn, STAMP)),
    st.just(lambda record: tree.redo(record, STAMP)),
    st.just(lambda record: tree.clear(record, STAMP)),
    st.tuples(names, st.none() | steps, values).map(lambda to: lambda record: results.put_result(record, *to, STAMP)),
    values.map(lambda value: lambda record: results.put_workspace(record, value, STAMP)),
    st.fixed_dictionaries(
        {}, optional={"name": st.just("x"), "model": st.none() | st.just("m"), "pool": st.none() | names}
    ).map(lambda patch: lambda record: profile.patch_profile(record, patch, STAMP)),
    st.dictionaries(names, values, max_size=2).map(
        lambda patch: lambda record: profile.patch_settings(record, patch, STAMP)
    ),
    st.sampled_from([None, {"user": {}}, {}]).map(lambda who: lambda record: profile.set_delegate(record, who, STAMP)),
)


def carried_out(record: AgentRecord, chain: Sequence[Move]) -> list[Change]:
    """The changes of those moves that are not refused."""
    changes: list[Change] = []
    for move in chain:
        try:
            change = move(record)
        except HoldfastError:
            continue
        assert change.record.version == record.version + bool(change.kinds)
        if change.kinds:
            changes.append(change)
            record = change.record
    return changes


@settings(max_examples=300, deadline=None)
@given(st.lists(moves, max_size=14))
def test_assignments_of_any_chain_give_the_records_document(chain: list[Move]) -> None:
    """Applied one by one, and folded into one update; and the document reads back as the record."""
    first = started()
    changes = carried_out(first, chain)
    document = first.document()
    for change in changes:
        document = applied(document, fold([change]))
        assert document == change.record.document()
    assert applied(first.document(), fold(changes)) == document
    if changes:
        assert AgentRecord.of(document).document() == document
        check_invariants(changes[-1].record)


def check_invariants(record: AgentRecord) -> None:
    """What the record's own docstring guarantees."""
    known = {ROOT, *record.steps}
    assert {body["parent_id"] for body in record.steps.values()} <= known
    assert {record.head, *record.branches.values()} <= known
    assert record.branch is None or record.branches[record.branch] == record.head
    seqs = [body["seq"] for body in record.steps.values()]
    assert len(set(seqs)) == len(seqs) == record.step_count
    assert record.seq >= max(seqs, default=0)


@settings(max_examples=100, deadline=None)
@given(st.lists(moves, max_size=8), st.lists(moves, max_size=8))
def test_folded_assignments_never_touch_each_other(chain: list[Move], more: list[Move]) -> None:
    """The database refuses an update with two paths of which one begins with the other."""
    assigned = fold(carried_out(started(), [*chain, *more]))
    paths = [*assigned.sets, *assigned.drops]
    assert len(set(paths)) == len(paths)
    assert not any(other.startswith(f"{path}.") for path in paths for other in paths)
    bson.encode({"": dict(assigned.sets)})


@settings(max_examples=100, deadline=None)
@given(st.lists(moves, max_size=12), steps, steps)
def test_difference_is_the_paths_beyond_the_merge_base(chain: list[Move], left: str, right: str) -> None:
    """Shared part and rest make up each path; nothing is in both rests."""
    record = ([started()] + [change.record for change in carried_out(started(), chain)])[-1]
    if not {left, right} <= {ROOT, *record.steps}:
        return
    found = tree.compare(record, left, right)
    base = path(record, found.merge_base)
    assert base + found.only_from == path(record, left)
    assert base + found.only_to == path(record, right)
    assert not set(found.only_from) & set(found.only_to)


@settings(max_examples=100, deadline=None)
@given(st.lists(moves, max_size=12), steps)
def test_fork_is_the_path_alone(chain: list[Move], at: str) -> None:
    """What is seen from its HEAD is what is seen from there in the source."""
    record = ([started()] + [change.record for change in carried_out(started(), chain)])[-1]
    if at not in {ROOT, *record.steps}:
        return
    fork = tree.fork(record, "t:b", at, None)
    check_invariants(fork)
    assert path(fork) == path(record, at)
    assert same(results.workspace_at(fork, fork.head), results.workspace_at(record, at))


def test_deletion_and_creation_continue_version_and_fence() -> None:
    """A tombstone has no content, what comes after it starts from its numbers, and who drove it before is out."""
    record = started().model_copy(update={"fence": 7, "version": 5})
    gone = delete(record, STAMP)
    assert not gone.record.exists
    document = applied(record.document(), fold([gone]))
    assert "steps" not in document
    again = create(AgentRecord.of(document), AgentRecord(id="t:a", tenant="t"), STAMP)
    assert (again.record.version, again.record.fence) == (7, 8)
    assert applied(document, fold([again])) == again.record.document()


def test_settings_are_laid_over_the_defaults() -> None:
    """Nulls are kept; the defaults themselves never change."""
    assert with_defaults({"max_steps": None, "x": 1}) == {**DEFAULTS, "max_steps": None, "x": 1}
    assert DEFAULTS["max_steps"] == 100


@pytest.mark.parametrize("key", [key for key in DEFAULTS if key != "allowed_tools"])
def test_known_settings_are_checked(key: str) -> None:
    """Each default passes its own check, null does, and an object never does."""
    check_settings({key: DEFAULTS[key]})
    check_settings({key: None})
    with pytest.raises(HoldfastError, match=key):
        check_settings({key: {"$gt": ""}})
