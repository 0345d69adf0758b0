"""The embedded database survives whatever happens to it and to those who start it. Each test has a real server."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest
from pymongo.errors import OperationFailure

from app import mongod
from app.mongod import EmbeddedError, EmbeddedServer, Watchdog
from tests.harness import free_port, wait_until

SECONDS = 60.0
_START = """
import sys
from pathlib import Path
from app.mongod import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]))
print(getattr(server, sys.argv[2])(), flush=True)
if sys.argv[2] == "join":
    sys.stdin.read()
    server.leave()
"""


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A data directory, whose server is gone at the end."""
    folder = tmp_path / "data"
    yield folder
    for pid in pids(folder):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def server(data: Path) -> EmbeddedServer:
    return EmbeddedServer(data)


def process(data: Path, call: str = "start") -> subprocess.Popen[str]:
    """Another process that starts (or joins) the server and prints its URI; one that joined leaves at end of input."""
    command = [sys.executable, "-c", _START, str(data), call]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def pids(data: Path) -> list[int]:
    """The mongods that run on the data directory."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if command[0].endswith(b"/mongod") and str(data).encode() in b" ".join(command):
            found.append(int(folder.name))
    return found


def kill(server: EmbeddedServer) -> None:
    """Kill -9 the server, and wait until it is gone."""
    pid = server.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not server.status().listens, SECONDS, "the killed server to be gone")


def write(uri: str, value: str) -> None:
    with pymongo.MongoClient[dict[str, Any]](uri, w="majority", journal=True) as client:
        client.lane.notes.insert_one({"_id": value})


def read(uri: str) -> list[str]:
    with pymongo.MongoClient[dict[str, Any]](uri) as client:
        return [found["_id"] for found in client.lane.notes.find().sort("_id")]


def mode(path: Path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):o}"


def test_start_returns_when_a_replica_set_can_be_written(server: EmbeddedServer) -> None:
    write(server.start(), "first")
    assert read(server.uri()) == ["first"]


def test_transactions_work(server: EmbeddedServer) -> None:
    server.start()
    with (
        pymongo.MongoClient[dict[str, Any]](server.uri()) as client,
        client.start_session() as session,
        session.start_transaction(),
    ):
        client.lane.notes.insert_one({"_id": "one"}, session=session)
    assert read(server.uri()) == ["one"]


def test_a_running_server_is_adopted(server: EmbeddedServer, data: Path) -> None:
    uri = server.start()
    running = pids(data)
    assert EmbeddedServer(data).start() == uri
    assert pids(data) == running
    assert len(running) == 1


def test_a_restart_keeps_data_and_address(server: EmbeddedServer) -> None:
    uri = server.start()
    write(uri, "kept")
    assert server.stop()
    assert not server.status().listens
    assert server.start() == uri
    assert read(uri) == ["kept"]


def test_stopping_what_does_not_run_says_so(server: EmbeddedServer) -> None:
    assert not server.stop()
    server.start()
    assert server.stop()
    assert not server.stop()


def test_there_is_no_uri_before_the_first_start(server: EmbeddedServer) -> None:
    with pytest.raises(EmbeddedError, match="holdfast db start"):
        server.uri()


def test_nothing_is_answered_without_credentials(server: EmbeddedServer) -> None:
    server.start()
    port = server.status().port
    with pymongo.MongoClient[dict[str, Any]]("127.0.0.1", port, directConnection=True) as client:
        for command in ("listDatabases", "serverStatus", "shutdown", "replSetGetStatus"):
            with pytest.raises(OperationFailure, match="requires authentication"):
                client.admin.command(command)
        with pytest.raises(OperationFailure, match="requires authentication"):
            client.lane.notes.find_one()
        with pytest.raises(OperationFailure, match="requires authentication"):
            client.admin.command("createUser", "me", pwd="me", roles=["root"])


def test_only_the_owner_reads_its_files(server: EmbeddedServer) -> None:
    server.start()
    assert mode(server.home) == "700"
    assert {mode(server.home / name) for name in ("state.json", "keyfile", "lock")} == {"600"}
    assert {path.name for path in server.home.rglob("*.sock")} == set()


def test_it_listens_on_loopback_only(server: EmbeddedServer) -> None:
    server.start()
    port = f":{server.status().port:04X}"
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    listening = [line.split()[1] for table in tables for line in table if line.split()[3] == "0A"]
    assert [address for address in listening if address.endswith(port)] == [f"0100007F{port}"]


def test_processes_that_start_at_once_get_one_server(data: Path) -> None:
    starters = [process(data) for _ in range(4)]
    answers = {starter.communicate(timeout=SECONDS)[0] for starter in starters}
    assert answers == {EmbeddedServer(data).uri() + "\n"}
    assert len(pids(data)) == 1


def test_a_killed_server_starts_again_with_data_and_address(server: EmbeddedServer) -> None:
    uri = server.start()
    write(uri, "acknowledged")
    kill(server)
    assert server.start() == uri
    assert read(uri) == ["acknowledged"]


MOMENTS: dict[str, Callable[[EmbeddedServer], bool]] = {
    "it has written the state": lambda server: (server.home / "state.json").exists(),
    "it has written the key file": lambda server: (server.home / "keyfile").exists(),
    "the server has begun": lambda server: (server.home / "mongod.log").exists(),
    "the server holds its files": lambda server: bool(server.status().pid),
    "the server listens": lambda server: server.status().listens,
    "the set is initiated": lambda server: "replSetInitiate" in (server.home / "mongod.log").read_text(),
    "the server is primary": lambda server: "PRIMARY" in (server.home / "mongod.log").read_text(),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_start_goes_on_where_a_killed_one_ended(server: EmbeddedServer, data: Path, moment: str) -> None:
    starter = process(data)
    try:
        wait_until(lambda: _reached(server, moment), SECONDS, moment)
    finally:
        starter.kill()
        starter.communicate(timeout=SECONDS)
    write(server.start(), "works")
    assert len(pids(data)) == 1


def _reached(server: EmbeddedServer, moment: str) -> bool:
    try:
        return MOMENTS[moment](server)
    except FileNotFoundError:
        return False


def test_a_server_whose_start_was_cut_short_can_be_stopped(server: EmbeddedServer, data: Path) -> None:
    starter = process(data)
    try:
        wait_until(lambda: _reached(server, "the server has begun"), SECONDS, "the server to begin")
    finally:
        starter.kill()
        starter.communicate(timeout=SECONDS)
    assert server.stop()
    assert pids(data) == []


def test_a_half_written_key_file_is_no_obstacle(server: EmbeddedServer) -> None:
    server.home.mkdir(parents=True, mode=0o700)
    (server.home / "keyfile.new").write_text("half")
    (server.home / "state.json.new").write_text("{")
    write(server.start(), "works")


def test_no_inherited_file_stays_open(data: Path) -> None:
    """A caller that pipes the output sees its end when the command returns, though the server runs on."""
    reading, writing = os.pipe()
    command = [sys.executable, "-c", _START, str(data), "start"]
    starter = subprocess.Popen(command, stdout=writing, stderr=writing, pass_fds=[writing])
    os.close(writing)
    with os.fdopen(reading) as output:
        assert output.read() == EmbeddedServer(data).uri() + "\n"
    assert starter.wait(timeout=SECONDS) == 0
    assert len(pids(data)) == 1


def test_it_does_not_share_the_session_of_its_starter(server: EmbeddedServer) -> None:
    """So Ctrl-C in the starter's terminal does not reach it."""
    server.start()
    pid = server.status().pid
    assert pid is not None
    assert os.getsid(pid) not in (os.getsid(0), 0)


def test_the_last_user_stops_it(data: Path) -> None:
    first, second = EmbeddedServer(data), EmbeddedServer(data)
    assert first.join() == second.join()
    first.leave()
    assert first.status().answers
    second.leave()
    assert not first.status().listens


@pytest.mark.parametrize("by_hand_first", [True, False])
def test_users_leave_a_server_running_that_was_started_by_hand(server: EmbeddedServer, *, by_hand_first: bool) -> None:
    steps = [server.start, server.join] if by_hand_first else [server.join, server.start]
    for step in steps:
        step()
    server.leave()
    assert server.status().answers


def test_a_server_stopped_by_hand_may_be_ended_by_its_last_user_again(server: EmbeddedServer) -> None:
    server.start()
    server.stop()
    server.join()
    server.leave()
    assert not server.status().listens


def test_a_killed_user_leaves_a_server_to_adopt(server: EmbeddedServer, data: Path) -> None:
    user = process(data, "join")
    assert user.stdout is not None
    uri = user.stdout.readline().strip()
    user.kill()
    user.communicate(timeout=SECONDS)
    running = pids(data)
    assert server.status().answers
    assert server.join() == uri
    assert pids(data) == running
    server.leave()
    assert not server.status().listens


def test_leaving_twice_or_without_having_joined_does_nothing(server: EmbeddedServer) -> None:
    server.leave()
    server.start()
    server.leave()
    assert server.status().answers


def test_a_watchdog_starts_it_again(server: EmbeddedServer, data: Path) -> None:
    uri = server.join()
    [killed] = pids(data)
    write(uri, "kept")
    watchdog = Watchdog(server, patience=0.2)
    watchdog.start()
    try:
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: pids(data) not in ([], [killed]), SECONDS, "the watchdog to start it again")
        wait_until(lambda: server.status().answers, SECONDS, "the new server to answer")
    finally:
        watchdog.stop()
    assert read(uri) == ["kept"]
    server.leave()
    assert not server.status().listens


def test_a_server_that_was_stopped_is_not_revived(server: EmbeddedServer) -> None:
    server.join()
    server.stop()
    assert not server.revive()
    assert not server.status().listens


def test_a_server_that_is_gone_is_revived(server: EmbeddedServer) -> None:
    server.start()
    kill(server)
    assert server.revive()
    assert server.status().answers


def test_a_taken_port_is_told_and_not_moved_from(server: EmbeddedServer) -> None:
    uri = server.start()
    port = server.status().port
    assert port is not None
    server.stop()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(EmbeddedError, match=f"Port {port}.*state.json"):
        server.start()
    assert server.start() == uri


def test_another_port_may_be_chosen_by_hand(server: EmbeddedServer) -> None:
    write(server.start(), "kept")
    server.stop()
    state = server.home / "state.json"
    chosen = free_port()
    state.write_text(json.dumps({**json.loads(state.read_text()), "port": chosen}))
    uri = server.start()
    assert f":{chosen}/" in uri
    assert read(uri) == ["kept"]


def test_a_process_id_used_again_by_another_program_is_left_alone(server: EmbeddedServer, data: Path) -> None:
    uri = server.start()
    kill(server)
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        (server.home / "db" / "mongod.lock").write_text(f"{bystander.pid}\n")
        assert not server.stop()
        assert server.start() == uri
        assert server.stop()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.communicate(timeout=SECONDS)
    assert pids(data) == []


def test_a_paused_server_is_told_and_can_be_stopped(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.start()
    pid = server.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(mongod, "START_SECONDS", 1.0)
    monkeypatch.setattr(mongod, "STOP_SECONDS", 1.0)
    status = server.status()
    assert (status.listens, status.answers) == (True, False)
    with pytest.raises(EmbeddedError, match=f"process {pid}.*does not answer"):
        server.start()
    assert server.stop()
    assert not server.status().listens


def test_a_missing_library_is_told_with_the_line_that_installs_it(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "mongod"
    binary.write_text(
        "#!/bin/sh\n"
        f"echo '{binary}: error while loading shared libraries: libcurl.so.4: cannot open shared object file: "
        "No such file or directory' >&2\nexit 127\n"
    )
    monkeypatch.setattr(mongod, "_installed_binary", lambda: binary)
    with pytest.raises(EmbeddedError, match="sudo apt-get install -y libcurl4"):
        server.start()


def test_a_missing_wheel_is_told_with_the_line_that_installs_it(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongod, "_WHEELS", ("no-such-distribution",))
    with pytest.raises(EmbeddedError, match=r"MONGODB_URI.*holdfast\[embedded\]"):
        server.start()


def test_damaged_files_are_told_with_the_servers_last_words(server: EmbeddedServer) -> None:
    server.start()
    server.stop()
    (server.home / "db" / "WiredTiger.turtle").write_text("nonsense")
    with pytest.raises(EmbeddedError, match=r"did not start.*mongod\.log"):
        server.start()


def test_a_lost_state_file_is_told_and_the_data_is_not_touched(server: EmbeddedServer) -> None:
    server.start()
    server.stop()
    state = (server.home / "state.json").read_bytes()
    (server.home / "state.json").unlink()
    with pytest.raises(EmbeddedError, match=r"state\.json.*missing"):
        server.start()
    (server.home / "state.json").write_bytes(state)
    server.start()


def test_a_data_directory_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(EmbeddedError, match="can't be used"):
        EmbeddedServer(tmp_path / "data").start()


def test_a_full_disk_is_told(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mongod.os, "fsync", full)
    with pytest.raises(EmbeddedError, match="No space left on device"):
        server.start()
