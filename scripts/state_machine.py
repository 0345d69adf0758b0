"""The state machine in the docs, made from the table: `python -m scripts.state_machine [--check]`.

Without an option the part of `docs/concepts.md` between the two markers is written anew; nothing else of it is touched.
With `--check` nothing is written, and the answer is 1 where the docs and the table differ.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from models.execution import TRANSITIONS, State, Trigger

Table = Mapping[State, Mapping[State, frozenset[Trigger]]]

DOCS = Path(__file__).parents[1] / "docs" / "concepts.md"
BEGIN = "<!-- state machine: made by `python -m scripts.state_machine` -->"
END = "<!-- end of the state machine -->"


class MarkersMissing(Exception):
    """The text has no single place, between the two markers, where the state machine belongs."""


def drawn(table: Table) -> str:
    """The table in Markdown, and the same as a Mermaid diagram; in the order of the states and triggers themselves."""
    rows = (f"| `{state}` | {_ways(ways)} |" for state, ways in table.items())
    return "\n".join(["| from | to (trigger) |", "|---|---|", *rows, "", "```mermaid", *_diagram(table), "```"])


def rewritten(text: str, table: Table) -> str:
    """The text with the table as it is now between the markers. Raises MarkersMissing."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise MarkersMissing
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{drawn(table)}\n{END}{after}"


def main() -> int:
    """Rewrite the docs, or say that they differ; 1 where they do, or have no place for the state machine."""
    text = DOCS.read_text(encoding="utf-8")
    try:
        wanted = rewritten(text, TRANSITIONS)
    except MarkersMissing:
        print(f"{DOCS.name} lacks the markers of the state machine: {BEGIN} and {END}.")
        return 1
    if "--check" not in sys.argv[1:]:
        DOCS.write_text(wanted, encoding="utf-8")
    elif wanted != text:
        print(f"The state machine in {DOCS.name} is not that of models/execution.py: python -m scripts.state_machine")
        return 1
    return 0


def _ways(ways: Mapping[State, frozenset[Trigger]]) -> str:
    return ", ".join(f"`{to}` ({_named(ways[to])})" for to in State if to in ways)


def _named(triggers: frozenset[Trigger]) -> str:
    return ", ".join(trigger for trigger in Trigger if trigger in triggers)


def _diagram(table: Table) -> Iterator[str]:
    yield "stateDiagram-v2"
    yield f"    [*] --> {State.PENDING}"
    for state, ways in table.items():
        yield from (f"    {state} --> {to}: {_named(ways[to])}" for to in State if to in ways)


if __name__ == "__main__":
    sys.exit(main())
