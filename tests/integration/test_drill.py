"""The drill as people meet it: it proves what it says, leaves nothing behind, and finds what is not as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from scripts import drill
from scripts.stage import BrokenPromise, Story
from tests.integration.test_demo_fleet import left_behind

SECONDS = 300.0
ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(SECONDS + 30)
def test_the_worst_day_is_survived_and_nothing_is_left_behind(tmp_path: Path) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "MONGODB_"))}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.drill", "--agents", "2"],
        env={**inherited, "TMPDIR": str(tmp_path), "COLUMNS": "200"},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    kept = [line for line in done.stdout.splitlines() if "✓" in line]
    for promise in ("while the backup was taken", "byte for byte", "fsck finds nothing", "missing: 0", "at that very"):
        assert any(promise in line for line in kept), done.stdout
    assert "Traceback" not in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert left_behind(tmp_path) == []


class _Restored(drill.Tenant):
    """A tenant whose agent is as told after the disaster."""

    def __init__(self, steps: set[str], digest: str) -> None:
        self.name = "acme"
        self.acknowledged = [("ash", "s1"), ("ash", "s2")]
        self.exports = {("ash", 3): "as it was", ("ash", 4): "as it was later"}
        self._found = (3, digest, steps)

    def export(self, agent: str) -> tuple[int, str, set[str]]:
        return self._found


def story() -> Story:
    return Story(Console(quiet=True))


def test_a_lost_step_and_another_content_are_found() -> None:
    drill._prove_agents(story(), [_Restored({"s1", "s2", "s3"}, "as it was")])
    with pytest.raises(BrokenPromise, match="acme:ash:s2"):
        drill._prove_agents(story(), [_Restored({"s1"}, "as it was")])
    with pytest.raises(BrokenPromise, match="not what they were"):
        drill._prove_agents(story(), [_Restored({"s1", "s2"}, "as it was later")])
