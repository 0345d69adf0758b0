"""The peers' virtual environment: made on first use, and again when its lock file says something else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console

_ROOT = Path(__file__).parents[3]
_VENV = _ROOT / ".venv-peers"
_LOCK = _ROOT / "scripts" / "bench" / "peers.lock"
_STAMP = _VENV / ".ready"

MODULE = "scripts.bench.peers_worker"


def python() -> Path:
    """The Python of an environment that has what the lock file names. Raises CalledProcessError."""
    found = _VENV / "bin" / "python"
    if not _STAMP.exists() or _STAMP.read_text() != _LOCK.read_text():
        Console(stderr=True).print("setting up .venv-peers (once) …")
        for command in _commands(found):
            subprocess.run(command, check=True, cwd=_ROOT)
        _STAMP.write_text(_LOCK.read_text())
    return found


def versions(*names: str) -> str:
    """The locked versions of these packages."""
    locked = dict(
        line.split(" ")[0].split("==") for line in _LOCK.read_text().splitlines() if "==" in line.split(" ")[0]
    )
    return ", ".join(f"{name} {locked[name]}" for name in names)


def _commands(found: Path) -> list[list[str]]:
    uv = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
    if uv is not None:
        return [
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(_VENV)],
            [
                uv,
                "pip",
                "install",
                "--quiet",
                "--compile-bytecode",
                "--python",
                str(found),
                "--requirement",
                str(_LOCK),
            ],
        ]
    install = [str(found), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return [[sys.executable, "-m", "venv", "--clear", str(_VENV)], [*install, "--requirement", str(_LOCK)]]
