"""The feed's queues: bounded, never skipping, ended in one of two ways."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from app.feed import Caps, Feed, Item, Over, Subscription, log_topic
from models.errors import FeedGap, TooMany, Unavailable
from models.ids import agent_key

CAPS = Caps(items=3, bytes=100, of_a_tenant=2, in_all=3)


def subscription(**caps: int) -> Subscription[str]:
    chosen = {"items": 3, "bytes": 100, "of_a_tenant": 2, "in_all": 3, **caps}
    return Subscription("t:a", "t", Caps(**chosen))


def item(value: str, size: int = 1) -> Item[Any]:
    return Item(value, size)


async def taken(heard: Subscription[Any], seconds: float = 0.0) -> list[str]:
    """All that is there."""
    values = []
    while (found := await heard.next(seconds)) is not None:
        values.append(found.value)
    return values


@pytest.fixture
def feed() -> Feed:
    """Open, as it is once the change stream is."""
    made = Feed(CAPS)
    made.position = "0"
    return made


async def test_items_come_in_the_order_they_were_told() -> None:
    """And leave the queue when they are taken."""
    heard = subscription()
    for _ in range(3):
        assert all(heard.push(item(value)) for value in "abc")
        assert await taken(heard) == ["a", "b", "c"]


async def test_nothing_comes_within_the_time() -> None:
    """None, and the next question is as good as the first."""
    heard = subscription()
    assert await heard.next(0.01) is None
    assert await heard.next(0.01) is None
    heard.push(item("a"))
    assert await taken(heard) == ["a"]


async def test_waiting_reader_is_woken() -> None:
    """By an item, and by the end."""
    heard = subscription()
    waiting = asyncio.create_task(heard.next(30))
    await asyncio.sleep(0)
    heard.push(item("a"))
    found = await asyncio.wait_for(waiting, 1)
    assert found is not None
    assert found.value == "a"
    waiting = asyncio.create_task(heard.next(30))
    await asyncio.sleep(0)
    heard.end(Over)
    with pytest.raises(Over):
        await asyncio.wait_for(waiting, 1)


async def test_reader_that_leaves_while_it_waits_takes_nothing_along() -> None:
    """What comes later is there for the next question."""
    heard = subscription()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(heard.next(30), 0.01)
    heard.push(item("a"))
    assert await taken(heard) == ["a"]


@pytest.mark.parametrize(("sizes", "held"), [([1] * 5, 3), ([40, 40, 40, 1], 2), ([100, 1], 1), ([500, 1], 1)])
async def test_overflow_ends_in_a_gap_after_what_is_held(feed: Feed, sizes: list[int], held: int) -> None:
    """Too many items or bytes; the first alone is taken however large it is; nothing after the gap gets in."""
    with feed.listening("t:a", "t") as heard:
        for number, size in enumerate(sizes):
            feed.tell("t:a", item(str(number), size))
        assert heard.ended
        assert feed.gaps == 1
        for number in range(held):
            found: Item[Any] | None = await heard.next(0)
            assert found is not None
            assert found.value == str(number)
        for _ in range(2):
            with pytest.raises(FeedGap):
                await heard.next(0)


async def test_room_that_is_taken_is_free_again() -> None:
    """Items and bytes both."""
    heard = subscription()
    heard.push(item("0", 40))
    for number in range(50):
        assert heard.push(item(str(number + 1), 40))
        found = await heard.next(0)
        assert found is not None
        assert found.value == str(number)


async def test_first_end_stays() -> None:
    """A reader who hung up is not told of a gap, and the other way round."""
    for first, second in ((Over, FeedGap), (FeedGap, Over)):
        heard = subscription()
        heard.end(first)
        heard.end(second)
        with pytest.raises(first):
            await heard.next(0)


async def test_item_is_told_to_its_topic_alone(feed: Feed) -> None:
    """And is the same object for all who hear it, so that it is encoded once."""
    with feed.listening("t:a", "t") as one, feed.listening("t:a", "t") as two, feed.listening("t:b", "u") as other:
        feed.tell("t:a", item("x"))
        found = [await heard.next(0) for heard in (one, two)]
        assert found[0] is found[1] is not None
        assert await taken(other) == []


async def test_slow_reader_does_not_hinder_others(feed: Feed) -> None:
    """It alone is closed, once."""
    with feed.listening("t:a", "t") as slow, feed.listening("t:a", "t") as quick:
        for number in range(10):
            feed.tell("t:a", item(str(number)))
            assert await taken(quick) == [str(number)]
        assert slow.ended
        assert not quick.ended
        assert feed.gaps == 1


def test_topic_is_forgotten_with_its_last_listener(feed: Feed) -> None:
    """Telling nobody costs nothing."""
    with feed.listening("t:a", "t"):
        with feed.listening("t:a", "t"):
            assert feed.count == 2
        assert feed.has("t:a")
    assert not feed.has("t:a")
    assert feed.count == 0


def test_log_topic_is_no_agents() -> None:
    """Of any tenant."""
    assert log_topic("t") == "t:"
    assert agent_key("t", "a").startswith(log_topic("t"))
    assert agent_key("t", "a") != log_topic("t")


def test_caps_hold_for_a_tenant_and_in_all(feed: Feed) -> None:
    """With Retry-After; whoever leaves makes room, also by an error."""
    with ExitStack() as stack:
        stack.enter_context(feed.listening("t:a", "t"))
        stack.enter_context(feed.listening("t:b", "t"))
        with pytest.raises(TooMany) as refused, feed.listening("t:c", "t"):
            pass
        assert refused.value.retry_after >= 1
        stack.enter_context(feed.listening("u:a", "u"))
        with pytest.raises(TooMany), feed.listening("v:a", "v"):
            pass
    for _ in range(5):
        with pytest.raises(KeyError), feed.listening("t:a", "t"):
            raise KeyError
    assert feed.count == 0
    with feed.listening("t:a", "t"), feed.listening("t:b", "t"):
        pass


def test_nobody_listens_before_the_stream_is_open() -> None:
    """What would be missed could not be told."""
    with pytest.raises(Unavailable), Feed(CAPS).listening("t:a", "t"):
        pass


@pytest.fixture
def heard(feed: Feed) -> Iterator[list[Subscription[Any]]]:
    """Listeners of an agent and of a log."""
    with feed.listening("t:a", "t") as events, feed.listening("t:", "t") as entries:
        feed.tell("t:a", item("x"))
        yield [events, entries]


async def test_lost_history_is_a_gap_for_everybody(feed: Feed, heard: list[Subscription[Any]]) -> None:
    """After what they hold; new listeners are welcome."""
    feed.gap()
    assert feed.gaps == 2
    assert (await heard[0].next(0)) is not None
    for one in heard:
        with pytest.raises(FeedGap):
            await one.next(0)
    heard[0].end(Over)
    feed.gap()
    assert feed.gaps == 2


async def test_stop_ends_every_feed_for_good(feed: Feed, heard: list[Subscription[Any]]) -> None:
    """No gap, and nobody new."""
    feed.stop()
    assert (await heard[0].next(0)) is not None
    for one in heard:
        with pytest.raises(Over):
            await one.next(0)
    with pytest.raises(Unavailable), feed.listening("t:a", "t"):
        pass
