"""The docs tell the state machine as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.execution import TRANSITIONS, State, Trigger
from scripts import state_machine
from scripts.state_machine import BEGIN, DOCS, END, MarkersMissing, drawn, main, rewritten

CHANGED = {**TRANSITIONS, State.STOPPED: {State.STARTING: frozenset({Trigger.SPAWN, Trigger.CONNECTED})}}
"""The table with one more way."""


def test_docs_of_the_repository_agree() -> None:
    """Who changes the table makes the docs anew: `python -m scripts.state_machine`."""
    text = DOCS.read_text(encoding="utf-8")
    assert rewritten(text, TRANSITIONS) == text


def test_every_way_is_in_the_table_and_in_the_diagram() -> None:
    """Both tell each state, each way and each trigger."""
    table, _, diagram = drawn(TRANSITIONS).partition("```mermaid")
    for state, ways in TRANSITIONS.items():
        (row,) = (line for line in table.splitlines() if line.startswith(f"| `{state}` |"))
        for to, triggers in ways.items():
            (arrow,) = (line for line in diagram.splitlines() if line.strip().startswith(f"{state} --> {to}:"))
            assert f"`{to}` (" in row
            assert all(trigger in row and trigger in arrow for trigger in triggers)


def test_changed_table_is_noticed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--check` says so in one line and writes nothing; without it the part between the markers is written anew."""
    docs = tmp_path / "concepts.md"
    text = f"before\n{BEGIN}\n{drawn(CHANGED)}\n{END}\nafter\n"
    docs.write_text(text)
    monkeypatch.setattr(state_machine, "DOCS", docs)
    monkeypatch.setattr("sys.argv", ["state_machine", "--check"])
    assert main() == 1
    assert capsys.readouterr().out.count("\n") == 1
    assert docs.read_text() == text
    monkeypatch.setattr("sys.argv", ["state_machine"])
    assert main() == 0
    assert docs.read_text() == f"before\n{BEGIN}\n{drawn(TRANSITIONS)}\n{END}\nafter\n"
    monkeypatch.setattr("sys.argv", ["state_machine", "--check"])
    assert main() == 0


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_text_without_a_place_for_it_is_left_alone(text: str) -> None:
    """Both markers are there once, in their order, or nothing is written."""
    with pytest.raises(MarkersMissing):
        rewritten(text, TRANSITIONS)
