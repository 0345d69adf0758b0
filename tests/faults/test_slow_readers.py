"""Many readers of feeds, slow readers, and replicas that stop amid feeds. The readers are plain sockets."""

from __future__ import annotations

import asyncio
import logging
import re
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.harness import Replica, clients_of, deployment, rounds, wait_until_async

pytestmark = pytest.mark.asyncio

_log = logging.getLogger(__name__)

SUBSCRIBERS = min(300 * rounds(1), 1_000)
OPENED_AT_ONCE = 50
SUBSCRIBER_BYTES = 150_000
"""What one idle subscriber may take of a replica's memory."""

FEED_BYTES = 1_000_000
LARGE = "x" * 200_000
LARGE_STEPS = 60
"""More than the queue, the server and the sockets hold together."""

SHUTDOWN_FEEDS = 50
SHUTDOWN_SECONDS = 5.0
HEARD_SECONDS = 20.0
_FILES = 8_192


@pytest.fixture(scope="module", autouse=True)
def many_files() -> Iterator[None]:
    """Let this process have a socket for every subscriber."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(_FILES, hard)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    with deployment(tmp_path_factory.mktemp("slow"), "one", feed_bytes=FEED_BYTES) as (_, (replica,)):
        yield replica


class Subscriber:
    """A reader of a feed on a socket of its own, which reads only when it is asked to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, replica: Replica, path: str, *, buffer: int | None = None) -> Subscriber:
        """Ask for the feed and wait for the head of its answer; `buffer`: bytes that the system keeps for us."""
        client = socket.socket()
        if buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", replica.port))
        subscriber = cls(*await asyncio.open_connection(sock=client, limit=1024))
        try:
            await subscriber._ask(path)
        except BaseException:
            subscriber.close()
            raise
        return subscriber

    async def _ask(self, path: str) -> None:
        headers = "Host: 127.0.0.1\r\nAccept: text/event-stream\r\nConnection: close"
        self._writer.write(f"GET {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head

    async def until(self, mark: bytes, seconds: float = HEARD_SECONDS) -> bytes:
        """Read until the mark has come; what was read."""
        heard = b""
        async with asyncio.timeout(seconds):
            while mark not in heard:
                more = await self._reader.read(65_536)
                assert more, f"the feed ended before {mark!r}: {heard[-200:]!r}"
                heard += more
        return heard

    async def rest(self, seconds: float) -> bytes:
        """Read to the end of the connection, which must be the end of a whole answer; its body."""
        heard = b""
        async with asyncio.timeout(seconds):
            while more := await self._reader.read(65_536):
                heard += more
        return unchunked(heard)

    def close(self) -> None:
        self._writer.close()


def unchunked(body: bytes) -> bytes:
    """The body of a chunked answer from a border between chunks on; the last chunk, which ends it, has to be there."""
    found = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        count = int(size or b"x", 16)
        if not count:
            assert body == b"\r\n", "something comes after the end"
            return found
        assert body[count : count + 2] == b"\r\n", "a chunk is cut off"
        found, body = found + body[:count], body[count + 2 :]


@asynccontextmanager
async def subscribed(replica: Replica, *paths: str, buffer: int | None = None) -> AsyncIterator[list[Subscriber]]:
    """A subscriber of each path, opened a few at a time; closed in the end."""
    async with AsyncExitStack() as stack:
        few = asyncio.Semaphore(OPENED_AT_ONCE)

        async def opened(path: str) -> Subscriber:
            async with few:
                return stack.enter_context(closing(await Subscriber.open(replica, path, buffer=buffer)))

        yield await asyncio.gather(*map(opened, paths))


async def new_agent(client: httpx.AsyncClient) -> str:
    made = await client.post("/v1/agents", json={"id": f"agent-{uuid4().hex}"})
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


async def append(client: httpx.AsyncClient, agent: str, content: str) -> None:
    answer = await client.post(f"/v1/agents/{agent}/steps", json={"role": "agent", "content": content})
    assert answer.status_code == 201, answer.text


async def test_many_idle_subscribers_cost_little_and_all_hear(replica: Replica) -> None:
    """Each of many subscribers hears the one commit; appends go on meanwhile; memory stays within its bound."""
    async with clients_of(replica) as (client,):
        agent, other = await new_agent(client), await new_agent(client)
        await append(client, other, "before")
        before = replica.resident_bytes()
        async with subscribed(replica, *[f"/v1/agents/{agent}/events"] * SUBSCRIBERS) as subscribers:
            await asyncio.gather(*(subscriber.until(b"event: snapshot") for subscriber in subscribers))
            assert replica.metric("holdfast_feed_subscribers") == SUBSCRIBERS
            each = (replica.resident_bytes() - before) / SUBSCRIBERS
            for number in range(20):
                await append(client, other, f"meanwhile {number}")
            began = time.monotonic()
            hearing = [asyncio.create_task(subscriber.until(b"event: head\nid: 2\n")) for subscriber in subscribers]
            await append(client, agent, "for all")
            heard = await asyncio.gather(*hearing)
            seconds = time.monotonic() - began
        assert all(b'"content":"for all"' in told for told in heard)
        _log.warning("%d subscribers: %.0f KB each; all heard within %.2f s", SUBSCRIBERS, each / 1000, seconds)
        assert each < SUBSCRIBER_BYTES
        await wait_until_async(lambda: replica.metric("holdfast_feed_subscribers") == 0, 10, "the feeds to be closed")


async def test_reader_that_does_not_read_gets_a_gap_and_the_others_everything(replica: Replica) -> None:
    """Large events, one reader asleep: when it wakes it finds the first ones in order, and a gap as the last thing."""
    async with clients_of(replica) as (client,):
        agent = await new_agent(client)
        path = f"/v1/agents/{agent}/events"
        gaps = replica.metric("holdfast_feed_gaps_total")
        async with subscribed(replica, path, buffer=4_096) as (sleeper,), subscribed(replica, path, path) as readers:
            last = f"event: head\nid: {LARGE_STEPS + 1}\n".encode()
            reading = [asyncio.create_task(reader.until(last, 60)) for reader in readers]
            for number in range(LARGE_STEPS):
                await append(client, agent, f"{number} {LARGE}")
            for told in await asyncio.gather(*reading):
                assert _numbers(told) == list(range(LARGE_STEPS))
            assert replica.metric("holdfast_feed_gaps_total") == gaps + 1
            body = await sleeper.rest(HEARD_SECONDS)
    heard = _numbers(body)
    assert heard == list(range(len(heard)))
    assert 0 < len(heard) < LARGE_STEPS, "the reader was not slow enough, or heard nothing"
    events = body.decode().strip().split("\n\n")
    assert events[-1].startswith("event: gap\ndata: ")
    assert sum(event.startswith("event: gap") for event in events) == 1


def _numbers(told: bytes) -> list[int]:
    """The numbers of the large steps in the order that they were told."""
    return [int(number) for number in re.findall(rb'"content":"(\d+) x', told)]


@pytest.mark.parametrize("number", range(rounds(1)))
async def test_stopped_replica_ends_its_feeds_and_itself_in_time(tmp_path: Path, number: int) -> None:
    """SIGTERM with many feeds open, and writes under way: exit code 0 within 5 s, and every feed is a whole answer."""
    with deployment(tmp_path, "stopping") as (_, (replica,)):
        async with clients_of(replica) as (client,):
            agent = await new_agent(client)
            paths = [f"/v1/agents/{agent}/events", "/v1/changes"] * (SHUTDOWN_FEEDS // 2)
            async with subscribed(replica, *paths) as feeds:
                written = asyncio.create_task(_append_until_refused(client, agent))
                ends = [asyncio.create_task(feed.rest(HEARD_SECONDS)) for feed in feeds]
                await wait_until_async(lambda: replica.metric("holdfast_updates_total") > 20, 10, "some writes")
                replica.terminate()
                began = time.monotonic()
                code = await asyncio.to_thread(replica.ended, SHUTDOWN_SECONDS)
                seconds = time.monotonic() - began
                bodies = await asyncio.gather(*ends)
                acknowledged = await written
    assert code == 0
    assert all(body.endswith(b"\n\n") and b"event: gap" not in body for body in bodies)
    _log.warning("stopped within %.2f s, after %d appends", seconds, acknowledged)


async def _append_until_refused(client: httpx.AsyncClient, agent: str) -> int:
    """Append until the replica does not take it any more; how many were acknowledged."""
    acknowledged = 0
    with suppress(httpx.TransportError):
        while (await client.post(f"/v1/agents/{agent}/steps", json={"role": "agent"})).is_success:
            acknowledged += 1
    return acknowledged
