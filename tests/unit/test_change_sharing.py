"""Changes that share an update are told from its one event as if each had come alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from models import profile, results, tree
from models.agent import AgentRecord
from models.change import Change, envelope, fold, may_share
from models.entry import Entry, entries_of
from models.event import Event
from models.ids import ROOT
from models.news import News, news_of
from tests.unit.test_moves import STAMP, Move, appending, carried_out, moves, names, started, values

TIME = (7, 1)
Traced = tuple[Change, str | None]

fresh_ids = st.integers(0, 10**9).map(lambda number: f"n{number}")
appends = st.builds(
    lambda ids, advance, workspace: appending(ids, advance, None, workspace),
    st.lists(fresh_ids, min_size=1, max_size=3, unique=True),
    st.booleans(),
    values,
)
likely_to_share = st.one_of(
    appends,
    st.integers().map(lambda n: lambda record: profile.patch_settings(record, {"n": n}, STAMP)),
    st.integers().map(lambda n: lambda record: results.put_result(record, "k", None, n, STAMP)),
    st.sampled_from("abc").map(lambda pool: lambda record: profile.patch_profile(record, {"pool": pool}, STAMP)),
)
about_head = st.one_of(
    st.integers().map(lambda n: lambda record: results.put_workspace(record, n, STAMP)),
    names.map(lambda name: lambda record: tree.set_branch(record, name, record.head, STAMP)),
    st.just(lambda record: tree.checkout(record, STAMP, step=ROOT)),
)
any_move = st.sampled_from(
    [appends, appends, appends, likely_to_share, likely_to_share, likely_to_share, about_head, moves]
).flatmap(lambda chosen: chosen)
traces = st.sampled_from([None, "trace-1", "trace-2"])


def event_of(before: int, group: Sequence[Traced]) -> Event:
    """What the change stream says of an update made of these changes."""
    changes = [change for change, _ in group]
    assigned = fold(changes)
    last = envelope(before, changes, STAMP, [trace for _, trace in group])
    return Event("t:a", TIME, {**assigned.sets, "last": last}, assigned.drops)


def grouped(chain: Sequence[Traced], cuts: set[int]) -> list[list[Traced]]:
    """The chain in updates: a new one begins where it must, and at the cuts."""
    groups: list[list[Traced]] = []
    for number, (change, trace) in enumerate(chain):
        kinds = [earlier.kinds for earlier, _ in groups[-1]] if groups else []
        if groups and number not in cuts and may_share(kinds, change.kinds):
            groups[-1].append((change, trace))
        else:
            groups.append([(change, trace)])
    return groups


def told(groups: Sequence[Sequence[Traced]], version: int) -> tuple[list[News], list[Entry]]:
    """The news and entries of all updates, in their order."""
    news: list[News] = []
    entries: list[Entry] = []
    for group in groups:
        happened = event_of(version, group)
        version = happened.version
        news += news_of(happened)
        entries += entries_of(happened)
    return news, entries


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(any_move, traces), min_size=3, max_size=25),
    st.sets(st.integers(0, 24), max_size=3),
    st.booleans(),
)
def test_shared_update_tells_what_single_ones_would(
    chain: list[tuple[Move, str | None]], cuts: set[int], detached: bool
) -> None:
    """Every version's news and entry, in order, with its own steps, kinds and trace."""
    first = started() if detached else started().model_copy(update={"branch": "main"})
    changes = carried_out(first, [move for move, _ in chain])
    traced = list(zip(changes, [trace for _, trace in chain], strict=False))
    groups = grouped(traced, cuts)
    event(f"largest update: {max(map(len, groups), default=0)}")
    news, entries = told(groups, first.version)
    alone_news, alone_entries = told([[one] for one in traced], first.version)
    assert news == alone_news
    assert entries == alone_entries
    assert [one.version for one in entries] == list(range(2, 2 + len(changes)))
    assert all(before.position < after.position for before, after in pairwise(entries))


def of(*chain: Move) -> list[Change]:
    """The changes of moves, none of which is refused."""
    changes = carried_out(started(), chain)
    assert len(changes) == len(chain)
    return changes


def shared(*chain: Move) -> list[bool]:
    """Whether each change may go into one update with all before it."""
    changes = of(*chain)
    return [may_share([earlier.kinds for earlier in changes[:n]], changes[n].kinds) for n in range(len(changes))]


def append(step: str, **options: Any) -> Move:
    return lambda record: tree.append(record, [tree.Draft(step, {"role": "user"})], STAMP, **options)


def put(key: str) -> Move:
    return lambda record: results.put_result(record, key, ROOT, 1, STAMP)


def patch(key: str) -> Move:
    return lambda record: profile.patch_settings(record, {key: 1}, STAMP)


def name(value: str) -> Move:
    return lambda record: profile.patch_profile(record, {"name": value}, STAMP)


def move_head(record: AgentRecord) -> Change:
    return tree.checkout(record, STAMP, step=ROOT)


def put_workspace(record: AgentRecord) -> Change:
    return results.put_workspace(record, {"w": 1}, STAMP)


def branch(record: AgentRecord) -> Change:
    return tree.set_branch(record, "side", ROOT, STAMP)


def clear(record: AgentRecord) -> Change:
    return tree.clear(record, STAMP)


aside = {"advance_head": False}


@pytest.mark.parametrize(
    ("chain", "share"),
    [
        ([append(f"s{n}") for n in range(40)], True),
        ([append("a"), append("b", **aside), append("c")], True),
        ([append("a"), patch("x"), append("b"), put("k"), append("c"), name("n"), append("d")], True),
        ([patch("x"), patch("y")], False),
        ([put("k"), put("l")], False),
        ([name("a"), name("b")], False),
        ([branch, patch("x"), put("k"), name("a")], True),
        ([append("a"), move_head], False),
        ([append("a", **aside), put_workspace], False),
        ([put_workspace, append("a")], False),
        ([branch, append("a")], False),
        ([put_workspace, branch], False),
        ([append("a"), clear], False),
        ([patch("x"), clear], False),
    ],
    ids=lambda value: str(value) if isinstance(value, bool) else str(len(value)),
)
def test_what_may_share_an_update(chain: list[Move], share: bool) -> None:
    """Appends without number, of all else one of a kind; what tells of HEAD not with appends; some alone."""
    assert shared(*chain) == [True] * (len(chain) - 1) + [share]


def test_many_writes_of_a_mix_need_few_updates() -> None:
    """Sharing is worth its rules: a hundred appends with some settings between go together."""
    chain = [append(f"s{n}") if n % 10 else patch(f"k{n}") for n in range(100)]
    groups = grouped([(change, None) for change in of(*chain)], set())
    assert len(groups) == 10
