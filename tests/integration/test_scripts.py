"""The scripts that follow and check the change log, as processes, on a real database that two replicas serve."""

from __future__ import annotations

import asyncio
import os
import random
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pymongo
import pytest
from pymongo.database import Database as Tables

from models.agreement import Written, differences, remark
from models.change import AGENT, CLEARED, CREATED, DELETED, HEAD, STEP
from models.entry import GAP, Entry, position, time_of
from scripts.example_subscriber import events
from tests.harness import Database, Replica, clients_of, deployment, rounds, wait_until

SECONDS = 60.0
KILLS = 5
AGENTS = ("one", "two", "three")
"""Who is written to by many at once."""

ROOT = Path(__file__).parents[2]
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

Deployment = tuple[Database, list[Replica]]
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A database and two replicas, for all tests of this file."""
    with deployment(tmp_path_factory.mktemp("scripts"), "a", "b") as both:
        yield both


@pytest.fixture
def tables(deployed: Deployment) -> Iterator[Tables[Any]]:
    """The database behind the service's back."""
    with closing(pymongo.MongoClient(deployed[0].uri, tz_aware=True)) as client:
        yield client["holdfast"]


def environment(**variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "MONGODB_"))}
    return {**inherited, "COLUMNS": "200", **variables}


def run(script: str, *words: str, **variables: str) -> Done:
    """A script, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", f"scripts.{script}", *words],
        env=environment(**variables),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def verdicts(done: Done) -> dict[str, str]:
    """What a replay said of each agent, by the agent's id."""
    assert "Traceback" not in done.stderr
    lines = (line.split(maxsplit=2) for line in done.stdout.splitlines()[:-1])
    return {key.partition(":")[2]: f"{found} {rest}" for found, key, rest in lines}


async def call(client: httpx.AsyncClient, method: str, path: str, body: Any = None, **headers: str) -> Any:
    answer = await client.request(method, f"/v1/agents{path}", json=body, headers=headers)
    assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
    return answer.json() if answer.content else None


@asynccontextmanager
async def writing(*clients: httpx.AsyncClient, pause: float = 0.01) -> AsyncIterator[list[tuple[str, int]]]:
    """Two writers on each client, who append to all of AGENTS, also while a replica is away; what was acknowledged."""
    for agent in AGENTS:
        await clients[0].post("/v1/agents", json={"id": agent})  # or it is there already
    acknowledged: list[tuple[str, int]] = []
    writers = [asyncio.create_task(keep_writing(client, acknowledged, pause)) for client in clients for _ in range(2)]
    try:
        yield acknowledged
    finally:
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)


async def keep_writing(client: httpx.AsyncClient, acknowledged: list[tuple[str, int]], pause: float) -> None:
    for agent in cycle(AGENTS):
        with suppress(httpx.TransportError):
            answer = await client.post(f"/v1/agents/{agent}/steps", json={"role": "user"})
            if answer.is_success:
                acknowledged.append((agent, answer.json()["version"]))
        await asyncio.sleep(pause)


async def live_through_everything(a: httpx.AsyncClient, b: httpx.AsyncClient) -> None:
    """Every kind of write on the agent `life`, through two replicas; then a fork, imports, deletes and a clear."""
    await call(a, "POST", "", {"id": "life", "workspace": {"a": 1}, "delegate": {"user": {}, "token": "secret"}})
    await asyncio.gather(
        *[call(a, "POST", "/life/steps", {"role": "user", "id": f"a{number}"}) for number in range(20)],
        *[call(b, "POST", "/life/steps", {"role": "user", "id": f"b{number}"}) for number in range(20)],
        *[call(each, "PUT", f"/life/results/r{number}", {"result": 1}) for number, each in enumerate((a, b, a))],
        *[call(each, "PATCH", "/life/settings", {f"s{number}": 1}) for number, each in enumerate((a, b, a))],
        call(b, "PATCH", "/life", {"name": "Life", "labels": {"a": "b"}}),
    )
    await call(a, "POST", "/life/steps", {"steps": [{"role": "user", "id": "q"}, {"role": "agent", "workspace": 2}]})
    await call(b, "PUT", "/life/workspace", {"b": 2})
    await call(a, "PUT", "/life/branches/side", {"step_id": "a3"})
    await call(b, "PUT", "/life/head", {"branch": "side"})
    await call(a, "DELETE", "/life/delegate")
    await call(a, "POST", "/life/steps?advance_head=false", {"role": "tool", "parent_id": "b5"})
    await call(b, "PUT", "/life/head", {"branch": "main"})
    await call(a, "POST", "/life/revert", {"turn_id": "q"})
    await call(b, "POST", "/life/redo")
    await call(a, "POST", "/life/steps", {"role": "user"}, **{"Idempotency-Key": "once"})
    fork = (await call(b, "POST", "/life/fork", {"at": "a7"}))["id"]
    await call(a, "POST", f"/{fork}/steps", {"role": "user"})
    export = await call(b, "GET", "/life/export")
    for _ in range(2):
        await call(a, "POST", "/import", {**export, "id": "again"})
        await call(b, "POST", "/again/steps", {"role": "user", "id": "new"})
        await call(a, "POST", "/again/clear")
        await call(b, "POST", "/again/steps", {"role": "user", "id": "new"})
        await call(a, "DELETE", "/again")
    await call(a, "POST", "/life/clear")
    await call(b, "POST", "/life/steps", {"steps": [{"role": "user"}, {"role": "agent"}]})


async def test_replay_agrees_with_every_kind_of_write_while_others_write_and_writes_nothing(
    deployed: Deployment, tables: Tables[Any]
) -> None:
    database, replicas = deployed
    async with clients_of(*replicas) as (a, b):
        await live_through_everything(a, b)
        beats = tables["beats"].distinct("_id")
        async with writing(a, b, pause=0.1):
            done = await asyncio.to_thread(run, "replay", "--all", MONGODB_URI=database.uri)
    found = verdicts(done)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"life", "again", *AGENTS} <= found.keys()
    assert all(said.startswith("agree") for said in found.values())
    assert done.stdout.splitlines()[-1].endswith(" 0 differ")
    assert tables["beats"].distinct("_id") == beats


Tamper = Callable[[Tables[Any], str], Any]


def _entries(change: dict[str, Any], version: int) -> Tamper:
    return lambda tables, agent: tables["changes"].update_one({"_id": f"default:{agent}:{version}"}, change)


def _document(change: dict[str, Any]) -> Tamper:
    return lambda tables, agent: tables["agents"].update_one({"_id": f"default:{agent}"}, change)


def _entry_gone(version: int) -> Tamper:
    return lambda tables, agent: tables["changes"].delete_one({"_id": f"default:{agent}:{version}"})


TAMPERED: dict[str, tuple[Tamper, str]] = {
    "entry-gone": (_entry_gone(4), "there is no entry of version 4"),
    "first-gone": (_entry_gone(1), "begins at version 2"),
    "newest-gone": (_entry_gone(7), "the log is at version 6, the document at 7"),
    "steps-gone": (_entries({"$unset": {"steps": 1}}, 3), "version 3 says 'step+head' and names 0 steps"),
    "step-renamed": (_entries({"$set": {"steps": ["other"]}}, 3), "does not name the document's step s3"),
    "step-added": (_entries({"$push": {"steps": "more"}}, 3), "no step more of version 3"),
    "kinds-changed": (_entries({"$set": {"kinds": ["settings"]}}, 7), "version 7 and the document differ in kinds"),
    "at-changed": (_entries({"$set": {"at": AT}}, 7), "version 7 and the document differ in at"),
    "made-again": (_entries({"$set": {"kinds": ["created"]}}, 4), "version 4 "),
    "place-changed": (_entries({"$set": {"position": position((1, 1), 4, "x")}}, 4), "another one's place"),
    "no-entry": (_entries({"$unset": {"version": 1}}, 4), "can't be read"),
    "step-lost": (_document({"$unset": {"steps.s5": 1}}), "the document has no step s5 of version 5"),
    "step-made-up": (_document({"$set": {"steps.s99": {"version": 4}}}), "does not name the document's step s99"),
    "version-bumped": (_document({"$inc": {"version": 1}}), "the document is at version 8, its newest commit at 7"),
    "went-back": (_document({"$set": {"version": 6, "last.v": 6, "last.from": 5}}), "the log is at version 7"),
    "buried": (_document({"$set": {"deleted_at": AT}}), "the document is a tombstone"),
    "vanished": (lambda tables, agent: tables["agents"].delete_one({"_id": f"default:{agent}"}), "no document"),
}


async def test_replay_finds_what_was_tampered_with(deployed: Deployment, tables: Tables[Any]) -> None:
    database, replicas = deployed
    async with clients_of(replicas[0]) as (client,):
        for agent in (*TAMPERED, "untouched"):
            await call(client, "POST", "", {"id": agent})
            for version in range(2, 7):
                await call(client, "POST", f"/{agent}/steps", {"role": "user", "id": f"s{version}"})
            await call(client, "PATCH", f"/{agent}", {"name": "Tim"})
        await client.get("/v1/changes")  # which waits until the log holds them
        for agent, (tamper, _) in TAMPERED.items():
            tamper(tables, agent)
        async with writing(client, pause=0.2):  # so that the log's mark moves
            done = await asyncio.to_thread(run, "replay", "--all", "--tenant", "default", MONGODB_URI=database.uri)
    for name in ("agents", "changes"):  # the next test is to find the log whole
        tables[name].delete_many({"_id": {"$regex": f"^default:({'|'.join(TAMPERED)})(:|$)"}})
    found = verdicts(done)
    assert done.returncode == 1
    assert found["untouched"].startswith("agree")
    for agent, (_, difference) in TAMPERED.items():
        assert found[agent].startswith("differ"), f"{agent}: {found[agent]}"
        assert difference in found[agent], f"{agent}: {found[agent]}"


def test_replay_tells_of_slips(deployed: Deployment) -> None:
    for words, said in ((("nobody",), "no agent 'nobody'"), ((), "--all")):
        done = run("replay", *words, MONGODB_URI=deployed[0].uri)
        assert (done.returncode != 0, done.stdout) == (True, "")
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def told(version: int, *kinds: str, steps: Sequence[str] = ()) -> Entry:
    at = AT + timedelta(minutes=version)
    return Entry("t", "a", version, position((version, 1), version, "a"), at, kinds, "me", steps=tuple(steps))


def written(entries: Sequence[Entry], steps: dict[str, int], *, deleted: bool = False) -> Written:
    """The document that the newest entry leads to."""
    newest = entries[-1]
    last = {"from": newest.version - 1, "v": newest.version, "kinds": newest.kinds, "at": newest.at, "by": newest.by}
    return Written("t:a", newest.version, last, steps, AT, deleted=deleted)


def test_nothing_is_demanded_of_what_a_gap_stands_for() -> None:
    entries = [told(3, STEP, HEAD, steps=["x"]), told(7, GAP), told(8, STEP, steps=["y"]), told(9, DELETED)]
    assert list(differences(written(entries[:2], {}), entries[:2], None)) == []
    assert list(differences(written(entries[:3], {"z": 5, "y": 8}), entries[:3], None)) == []
    assert list(differences(written(entries, {}, deleted=True), entries, None)) == []
    assert remark(entries) == "what led to version 7 is a gap"
    assert list(differences(written(entries[:3], {}), entries[:3], None)) == ["the document has no step y of version 8"]


def test_a_log_may_begin_late_only_where_its_age_says_so() -> None:
    entries = [told(5, AGENT), told(6, STEP, steps=["x"])]
    agent = written(entries, {"old": 2, "x": 6})
    assert remark(entries) == "version 5 is the oldest kept"
    assert list(differences(agent, entries, AT + timedelta(days=1))) == []
    for kept_from in (None, AT - timedelta(days=1)):  # never swept; swept long before the agent was created
        assert "begins at version 5" in next(differences(agent, entries, kept_from))
    assert list(differences(agent, [], AT + timedelta(days=1))) == []
    assert list(differences(agent, [], None)) == ["the log holds no entry of it"]


def test_versions_of_different_lives_are_told_apart() -> None:
    lives = [told(1, CREATED), told(2, STEP, steps=["x"]), told(3, DELETED), told(4, CREATED), told(5, CLEARED)]
    assert list(differences(written(lives, {}), lives, None)) == []
    assert any("which it can't be" in found for found in differences(written(lives, {"x": 2}), lives, None))
    buried = [*lives[:3], told(4, AGENT)]
    assert "version 4 changes an agent that is not there" in differences(written(buried, {}), buried, None)
    doubled = [*lives[:2], told(3, CREATED)]
    assert "version 3 creates an agent that is there" in differences(written(doubled, {"x": 2}), doubled, None)


def test_a_subscriber_parts_events_at_empty_lines_alone() -> None:
    separators = "a\u2028b\x85c"
    stream = (
        f'event: change\nid: 1\ndata: "{separators}"\n\n: still here\n\nevent: gap\ndata: {{}}\n\nevent: ch'.encode()
    )
    chunks = [stream[start : start + 7] for start in range(0, len(stream), 7)]
    assert list(events(chunks)) == [("change", f'"{separators}"'), ("gap", "{}")]


@contextmanager
def subscribed(notebook: Path, *words: str) -> Iterator[None]:
    """A subscriber at work, killed -9 in the end; what it says is in a file beside its notebook."""
    command = [sys.executable, "-m", "scripts.example_subscriber", "--into", str(notebook), *words]
    with notebook.with_suffix(".log").open("a") as log:
        process = subprocess.Popen(command, env=environment(), cwd=ROOT, stderr=log)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def kept(notebook: Path) -> list[tuple[str, int, str]]:
    """What a subscriber has kept, as it came: agent, version, cursor."""
    with closing(sqlite3.connect(notebook)) as sqlite:
        rows = sqlite.execute("SELECT agent, version, json_extract(entry, '$.cursor') FROM entries ORDER BY number")
        return rows.fetchall()


def count(notebook: Path) -> int:
    try:
        return len(kept(notebook))
    except sqlite3.OperationalError:
        return 0


def logged(replica: Replica) -> list[tuple[str, int, str]]:
    """What the log holds, by its pages."""
    found: list[tuple[str, int, str]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = httpx.get(f"{replica.url}/v1/changes", params={"limit": 200, "cursor": cursor}).json()
        found += [(entry["agent"], entry["version"], entry["cursor"]) for entry in page["items"]]
        cursor = page["next_cursor"]
    return found


def torment(notebook: Path, replicas: Sequence[Replica]) -> None:
    """Kill the subscriber in the middle of its work, again and again, and once the replica that it follows first."""
    urls = [word for replica in replicas for word in ("--url", replica.url)]
    for number in range(rounds(KILLS)):
        with subscribed(notebook, *urls):
            wait_for_more(notebook)
            if number % KILLS == 1:
                replicas[0].kill9()
                wait_for_more(notebook)
            if number % KILLS == 3:
                replicas[0].restart()
            time.sleep(random.uniform(0, 0.3))  # noqa: S311 - so that the kill falls anywhere


def wait_for_more(notebook: Path) -> None:
    before = count(notebook)
    wait_until(lambda: count(notebook) > before, SECONDS, "the subscriber to hear something")


async def test_a_subscriber_killed_anywhere_holds_every_version_once_and_in_order(
    deployed: Deployment, tmp_path: Path
) -> None:
    _, replicas = deployed
    notebook = tmp_path / "changes.sqlite"
    async with clients_of(*replicas) as clients:
        async with writing(*clients) as acknowledged:
            await asyncio.to_thread(torment, notebook, replicas)
        for agent in AGENTS:  # after all that was still under way, on both replicas
            for client in clients:
                await call(client, "PATCH", f"/{agent}", {"name": f"settled by {client.base_url.port}"})
    log = logged(replicas[0])
    with subscribed(notebook, "--url", replicas[0].url):
        await asyncio.to_thread(wait_until, lambda: count(notebook) >= len(log), SECONDS, "the subscriber to catch up")
    rows = kept(notebook)
    assert rows == log
    assert len(set(rows)) == len(rows)
    assert len(set(acknowledged)) == len(acknowledged) > 100
    assert {(agent, version) for agent, version, _ in rows} >= set(acknowledged)


def test_a_subscriber_that_missed_entries_for_ever_says_so_or_takes_what_is_left(
    deployed: Deployment, tables: Tables[Any], tmp_path: Path
) -> None:
    """The log says from where on it is kept, also while what is older is still being removed."""
    _, (replica, _) = deployed
    notebook, url = tmp_path / "changes.sqlite", ("--url", replica.url)
    httpx.post(f"{replica.url}/v1/agents", json={"id": "aged"}).raise_for_status()
    total = len(logged(replica))
    with subscribed(notebook, *url):
        wait_until(lambda: count(notebook) == total, SECONDS, "the subscriber to hear everything")
    answer = httpx.patch(f"{replica.url}/v1/agents/aged", json={"name": "Aged"})
    assert answer.status_code == 200
    cursor = logged(replica)[-1][2]
    try:
        removed = {"$set": {"kept_from": position(time_of(cursor)), "tenant": "default"}}
        tables["changes"].update_one({"_id": "kept:default"}, removed, upsert=True)
        done = run("example_subscriber", *url, "--into", str(notebook))
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        assert re.search(r"410: .*removed by age.*--from-oldest", done.stderr)
        with subscribed(notebook, *url, "--from-oldest"):
            wait_until(lambda: count(notebook) == total + 1, SECONDS, "the subscriber to go on at the oldest")
    finally:
        tables["changes"].delete_one({"_id": "kept:default"})
    assert kept(notebook)[total:] == [("aged", 2, cursor)]


@pytest.mark.parametrize("words", [("--url", "nonsense"), ("--key-from-env",)])
def test_a_subscriber_tells_of_slips(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run("example_subscriber", *words, "--into", str(tmp_path / "changes.sqlite"))
    assert done.returncode == 2
    assert words[0] in done.stderr
    assert not (tmp_path / "changes.sqlite").exists()
