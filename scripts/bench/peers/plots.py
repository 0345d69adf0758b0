"""Plots of what was found, drawn by a library in the peers' environment."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson

from scripts.bench.peers.comparison import NAME
from scripts.bench.peers.installation import MODULE, python
from scripts.bench.report import Finding, as_json

_ROOT = Path(__file__).parents[3]


def plot(findings: Sequence[Finding], around: Mapping[str, str], folder: Path) -> None:
    """Write what the peers cost against size as SVG files into the folder."""
    if not any(finding.name == NAME and finding.rows for finding in findings):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        file.write(orjson.dumps(as_json(findings, around)))
        file.flush()
        command = [str(python()), "-m", f"{MODULE}.plots", file.name, str(folder.resolve())]
        subprocess.run(command, check=True, cwd=_ROOT)
