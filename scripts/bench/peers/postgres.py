"""A PostgreSQL of the run's own: a new cluster with its defaults, on a socket in a temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INSTALL = "apt-get install -y postgresql"
_DEBIAN = Path("/usr/lib/postgresql")
_USER = "postgres"


@contextmanager
def cluster() -> Iterator[str | None]:
    """How to connect to it; None when PostgreSQL is not installed."""
    programs = _programs()
    if programs is None:
        yield None
        return
    # The lab's folder is closed to the other user that PostgreSQL insists on when we are root.
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-postgres-") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            shutil.chown(folder, _USER)
        data = folder / "data"
        _run(programs / "initdb", "--auth=trust", f"--username={_USER}", "--encoding=UTF8", "--locale=C", "-D", data)
        options = f"-c listen_addresses='' -k {folder}"
        control = programs / "pg_ctl", "-w", "-D", data
        _run(*control, "-l", folder / "log", "-o", options, "start")
        try:
            yield f"host={folder} user={_USER}"
        finally:
            _run(*control, "-m", "fast", "stop")


def _programs() -> Path | None:
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    versions = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: float(path.parents[1].name))
    return versions[-1].parent if versions else None


def _run(*command: Path | str) -> None:
    """As the user that PostgreSQL insists on, quietly. Raises CalledProcessError."""
    other = ["runuser", "-u", _USER, "--"] if os.geteuid() == 0 else []
    subprocess.run([*other, *map(str, command)], check=True, cwd="/", stdout=subprocess.DEVNULL)
