"""The demonstration of runners as people meet it: it keeps every promise, leaves nothing behind, and can say no."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import demo_fleet
from tests.harness import wait_until

SECONDS = 170.0
ROOT = Path(__file__).parents[2]


def performed(folder: Path) -> subprocess.Popen[str]:
    """The demonstration under way; all that it makes is in the folder."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "MONGODB_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "scripts.demo_fleet"],
        env={**inherited, "TMPDIR": str(folder), "COLUMNS": "200"},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left_behind(folder: Path) -> list[str]:
    """Processes that were started for the demonstration, by their environment."""
    mark = f"TMPDIR={folder}\0".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes() + b"\0":
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.mark.timeout(SECONDS + 30)
def test_every_promise_is_kept_and_nothing_is_left_behind(tmp_path: Path) -> None:
    demo = performed(tmp_path)
    try:
        told, _ = demo.communicate(timeout=SECONDS)
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(30)
    assert demo.returncode == 0, told
    kept = [line for line in told.splitlines() if "✓" in line]
    for promise in ("Agents stuck: 0", "steps lost: 0", "old fence: 0", "agents taken: 0", "are free within"):
        assert any(promise in line for line in kept), told
    acts = ("kill -9 (ann|bob|cid)", "SIGSTOP", "SIGCONT", "kill -9 replica A", "pauses the database", "SIGTERM")
    for act in acts:
        assert re.search(rf"demo +{act}", told), told
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []
    assert left_behind(tmp_path) == []


def test_nothing_is_left_behind_after_ctrl_c(tmp_path: Path) -> None:
    demo = performed(tmp_path)
    try:
        assert demo.stdout is not None
        wait_until(lambda: "registers" in demo.stdout.readline(), 60, "the runners to register")
        demo.send_signal(signal.SIGINT)
        told, _ = demo.communicate(timeout=60)
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(60)
    assert demo.returncode == 130, told
    assert list(tmp_path.iterdir()) == []
    assert left_behind(tmp_path) == []


def entry(version: int, by: str, *kinds: str, **more: object) -> dict[str, Any]:
    at = f"2026-01-02T03:04:{version:02d}.000Z"
    return {"agent": "ash", "version": version, "by": by, "kinds": list(kinds), "at": at, **more}


LOG = [
    entry(1, "anonymous", "created"),
    entry(2, "runner:ann", "runner", "state", runner="ann", fence=1),
    entry(3, "runner:ann", "step"),
    entry(4, "holdfast", "runner", "state", "step", fence=2),
    entry(5, "runner:bob", "runner", runner="bob", fence=3),
    entry(6, "runner:bob", "step"),
    entry(7, "runner:bob", "runner", fence=4),
    entry(8, "runner:ann", "runner", runner="ann", fence=5),
]


def foreign(log: list[dict[str, Any]]) -> list[int]:
    return [each["version"] for each, hold in demo_fleet._held(log) if demo_fleet._is_foreign(each, hold)]


def test_a_write_by_a_runner_that_does_not_hold_the_agent_is_found() -> None:
    assert foreign(LOG) == []
    assert foreign([*LOG[:4], entry(5, "runner:ann", "step")]) == [5]
    assert foreign([*LOG[:6], entry(7, "runner:ann", "step")]) == [7]
    assert foreign([*LOG[:7], entry(8, "runner:bob", "step")]) == [8]
    assert foreign([*LOG[:3], entry(4, "runner:bob", "runner", runner="bob", fence=2)]) == [4]


def test_the_fence_at_each_version_is_that_of_the_newest_claim() -> None:
    assert [hold.fence for _, hold in demo_fleet._held(LOG)] == [0, 0, 1, 1, 2, 3, 3, 4]


def test_an_agent_taken_from_a_live_runner_is_found() -> None:
    taken = [(each, hold) for each, hold in demo_fleet._held(LOG) if demo_fleet._was_taken(each, hold)]
    assert [(each["version"], hold.runner) for each, hold in taken] == [(4, "ann")]
    at = demo_fleet._time(LOG[3])
    for runner, began, ended, excused in (
        ("ann", at - 1, at + 1, True),
        ("bob", at - 1, at + 1, False),
        ("ann", at + 1, at + 2, False),
        ("ann", at - 2, at - 1, False),
    ):
        fault = demo_fleet.Fault(runner, began, ended)
        assert demo_fleet._excuses(fault, *taken[0]) is excused
