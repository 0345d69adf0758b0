"""What subscribers are told of a commit, made from its event alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from models import profile, results, tree
from models.agent import AgentRecord, create, delete
from models.change import Change, envelope, fold
from models.event import Event
from models.ids import ROOT
from models.news import News, Told, news_of, snapshot_of, steps_since
from tests.unit.test_moves import STAMP, Move, carried_out, started


def begun() -> AgentRecord:
    """A new agent on its first branch, as the service makes them."""
    return started().model_copy(update={"branch": "main"})


def event_of(before: AgentRecord, changes: Sequence[Change]) -> Event:
    assigned = fold(changes)
    last = envelope(before.version, changes, STAMP, [None] * len(changes))
    return Event(before.id, (1, 1), {**assigned.sets, "last": last}, assigned.drops)


def news_after(*chain: Move) -> list[News]:
    """The news of the last move, made on what the others led to."""
    changes = carried_out(begun(), chain)
    assert len(changes) == len(chain)
    before = changes[-2].record if len(changes) > 1 else begun()
    return news_of(event_of(before, changes[-1:]))


def told_after(*chain: Move) -> tuple[Told, ...]:
    (news,) = news_after(*chain)
    return news.told


def append(*ids: str, advance: bool = True, **given: Any) -> Move:
    drafts = [tree.Draft(step, {"role": "user", **given}) for step in ids]
    return lambda record: tree.append(record, drafts, STAMP, advance_head=advance)


def checkout(**where: str) -> Move:
    return lambda record: tree.checkout(record, STAMP, **where)


def patch(**fields: Any) -> Move:
    return lambda record: profile.patch_profile(record, fields, STAMP)


def delegate(who: dict[str, Any] | None) -> Move:
    return lambda record: profile.set_delegate(record, who, STAMP)


def put(key: str, step: str, value: Any) -> Move:
    return lambda record: results.put_result(record, key, step, value, STAMP)


def branch(name: str, step: str) -> Move:
    return lambda record: tree.set_branch(record, name, step, STAMP)


def ids_of(told: Sequence[Told]) -> list[str]:
    return [data["id"] for kind, data in told if kind == "step"]


def test_steps_of_a_batch_come_by_seq_then_head() -> None:
    """However their ids sort, and however the database orders the fields of an update."""
    changes = carried_out(begun(), [append("z", "a", "m")])
    told = event_of(begun(), changes)
    for sets in (told.sets, dict(sorted(told.sets.items()))):
        (news,) = news_of(Event(told.key, told.time, sets, told.drops))
        assert ids_of(news.told) == ["z", "a", "m"]
        assert news.told[-1] == ("head", {"version": 2, "head": "m", "branch": "main"})
        assert news.moved_to is None


def test_step_is_told_as_it_is_read() -> None:
    """With its id, and everything that was given."""
    (change,) = carried_out(begun(), [append("a", data={"x.y": 1}, workspace=None)])
    (news,) = news_of(event_of(begun(), [change]))
    assert news.told[0] == ("step", change.record.step("a"))
    assert news.told[1][1]["workspace"] is None


def test_append_aside_tells_no_head() -> None:
    """Also when it brings a workspace, which is not the agent's."""
    assert [kind for kind, _ in told_after(append("a", advance=False, workspace=1))] == ["step"]


def test_last_workspace_of_a_batch_goes_with_head() -> None:
    """As HEAD sees it."""
    drafts = [
        tree.Draft(step, {"role": "user", **given})
        for step, given in (("a", {"workspace": 1}), ("b", {"workspace": 2}), ("c", {}))
    ]
    told = told_after(lambda record: tree.append(record, drafts, STAMP))
    assert told[-1] == ("head", {"version": 2, "head": "c", "branch": "main", "workspace": 2})


def test_moved_head_names_the_step_whose_workspace_is_to_be_found() -> None:
    """Checkout, revert, redo: the event has not got it."""
    (news,) = news_after(append("a", "b"), checkout(step="a"))
    assert (news.told, news.moved_to) == ((("head", {"version": 3, "head": "a", "branch": None}),), "a")
    (news,) = news_after(append("a"), append("b"), lambda record: tree.revert(record, "b", STAMP))
    assert (news.told[0][1]["branch"], news.moved_to) == ("main", "a")
    (news,) = news_after(append("a"), branch("x.y", ROOT), checkout(branch="x.y"))
    assert (news.told[0][1]["branch"], news.moved_to) == ("x.y", ROOT)


def test_workspace_is_told_as_head_with_it() -> None:
    """Nothing is left to find."""
    (news,) = news_after(append("a"), lambda record: results.put_workspace(record, {"w": 1}, STAMP))
    assert news.told == (("head", {"version": 3, "head": "a", "branch": "main", "workspace": {"w": 1}}),)
    assert news.moved_to is None


CHANGES: list[tuple[list[Move], Told]] = [
    ([patch(name="Ada", labels={"x": "1"})], ("agent", {"version": 2, "name": "Ada", "labels": {"x": "1"}})),
    ([patch(model="m"), patch(model=None)], ("agent", {"version": 3, "model": None})),
    ([patch(pool="p", region="r")], ("agent", {"version": 2, "pool": "p", "region": "r"})),
    ([patch(ttl_seconds=1.5)], ("agent", {"version": 2, "ttl_seconds": 1.5})),
    (
        [delegate({"user": {"id": 1}, "token": "sealed"})],
        ("agent", {"version": 2, "delegate": {"user": {"id": 1}, "token": "***"}}),
    ),
    ([delegate({"user": {}})], ("agent", {"version": 2, "delegate": {"user": {}}})),
    ([delegate({"token": "x"}), delegate(None)], ("agent", {"version": 3, "delegate": None})),
    ([branch("x.y", ROOT)], ("agent", {"version": 2, "branches": {"x.y": ROOT}})),
    (
        [branch("x.y", ROOT), lambda record: tree.delete_branch(record, "x.y", STAMP)],
        ("agent", {"version": 3, "branches": {"x.y": None}}),
    ),
    (
        [put("a.b$", ROOT, {"r": 1})],
        ("results", {"version": 2, "results": {"a.b$": {"step_id": ROOT, "result": {"r": 1}}}}),
    ),
    (
        [lambda record: profile.patch_settings(record, {"x.y": {"$": 1}}, STAMP)],
        ("settings", {"version": 2, "settings": {"x.y": {"$": 1}}}),
    ),
    (
        [append("a"), lambda record: tree.clear(record, STAMP)],
        ("cleared", {"version": 3, "head": ROOT, "branch": "main"}),
    ),
    ([lambda record: delete(record, STAMP)], ("deleted", {"version": 2})),
]


@pytest.mark.parametrize(("chain", "told"), CHANGES, ids=lambda value: value[0] if isinstance(value, tuple) else "")
def test_each_kind_of_change_has_its_event(chain: list[Move], told: Told) -> None:
    """With the version, and what changed under the names that callers gave; no sealed token."""
    assert told_after(*chain) == (told,)


def test_new_agent_is_no_news() -> None:
    """Nobody can have listened to it."""
    nobody = AgentRecord(id="t:a", tenant="t")
    draft = nobody.model_copy(update={"steps": begun().steps, "branch": "main"})
    document = {**create(nobody, draft, STAMP).record.document()}
    document["last"] = envelope(0, [create(nobody, draft, STAMP)], STAMP, [None])
    assert [news.told for news in news_of(Event("t:a", (1, 1), document, whole=True))] == [()]
    gone = delete(begun(), STAMP).record
    again = create(gone, draft, STAMP)
    assert [news.told for news in news_of(event_of(gone, [again]))] == [()]


def test_snapshot_tells_where_the_agent_stands() -> None:
    """Branch by its own name, null when detached, of a tombstone as of an empty one."""
    changes = carried_out(begun(), [append("a"), branch("x.y", ROOT), checkout(branch="x.y"), checkout(step="a")])
    shown = [snapshot_of(change.record) for change in changes]
    assert [kind for kind, _ in shown] == ["snapshot"] * 4
    assert [(data["version"], data["head"], data["branch"]) for _, data in shown] == [
        (2, "a", "main"),
        (3, "a", "main"),
        (4, ROOT, "x.y"),
        (5, "a", None),
    ]
    assert snapshot_of(delete(begun(), STAMP).record)[1]["head"] == ROOT


def test_missed_steps_are_told_commit_by_commit() -> None:
    """By version, within it by seq, side branches too; each commit's steps together."""
    chain = [append("z", "a"), append("side", advance=False), patch(name="x"), append("b")]
    record = carried_out(begun(), chain)[-1].record
    wanted = [(2, ["z", "a"]), (3, ["side"]), (5, ["b"])]
    for version in range(7):
        found = [(news.version, ids_of(news.told)) for news in steps_since(record, version)[0]]
        assert found == [one for one in wanted if one[0] > version]
    assert steps_since(record, 0)[0][0].told[0] == ("step", record.step("z"))
