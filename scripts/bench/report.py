"""What a run found: rows with medians and ratios, printed as a table or kept as JSON, with what they stand on."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.bench.rounds import Spread, ratios

_PACKAGES = ("pymongo", "beanie", "litestar", "uvicorn", "uvloop", "pydantic", "orjson", "msgspec", "numpy")

NOT_CLAIMED = (
    "Ratios between variants that took turns on one machine, nothing else: no absolute speed, no speed of yours.",
    "Server, replica and client share this machine's processors, so more of one is less of the others; "
    "the network between them is a loopback.",
    "A replica set of one member: majority costs no network here. "
    "Contention between replicas that write is not measured.",
    "The spread is that of the middle half of the rounds. A ratio within it of 1 is a draw.",
)


@dataclass(frozen=True, slots=True)
class Bound:
    """What a ratio is expected to be; or a figure, in a row without a ratio."""

    sign: str
    value: float

    def holds(self, found: float) -> bool:
        return found >= self.value if self.sign == "≥" else found <= self.value

    def __str__(self) -> str:
        return f"{self.sign} {self.value:.2f}"


@dataclass(frozen=True, slots=True)
class Row:
    """One variant of one case: its figures, and its ratio to another variant of the case (None: it is that one)."""

    case: str
    variant: str
    unit: str
    figure: Spread
    ratio: Spread | None = None
    against: str | None = None
    expected: Bound | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the ratio (without one, the figure) is as expected; None when nothing is."""
        return None if self.expected is None else self.expected.holds((self.ratio or self.figure).median)


@dataclass(frozen=True, slots=True)
class Finding:
    """The rows of one benchmark and what its reader must know."""

    name: str
    about: str
    rows: Sequence[Row]


def compared(
    case: str,
    unit: str,
    figures: Mapping[str, Sequence[float]],
    *,
    against: str,
    expected: Mapping[str, Bound] | None = None,
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """A row for each variant, all of them set against one."""
    rows = []
    for variant, own in figures.items():
        other = variant != against
        rows.append(
            Row(
                case,
                variant,
                unit,
                Spread.of(own),
                ratios(own, figures[against]) if other else None,
                against if other else None,
                (expected or {}).get(variant),
                (notes or {}).get(variant, ""),
            )
        )
    return rows


def surroundings(server: str) -> dict[str, str]:
    """What the figures stand on: date, machine, versions."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{os.cpu_count()} processors ({_processor()}), {platform.system()} {platform.machine()}",
        "python": sys.version.split()[0],
        "mongodb": server,
        "packages": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
    }


def as_json(findings: Sequence[Finding], around: Mapping[str, str]) -> dict[str, Any]:
    """Everything, for a machine."""
    return {"surroundings": dict(around), "not_claimed": NOT_CLAIMED, "findings": [asdict(each) for each in findings]}


def as_markdown(findings: Sequence[Finding]) -> str:
    """The tables as they stand in the documentation."""
    return "\n\n".join(map(_section, findings)) + "\n"


def show(findings: Sequence[Finding], around: Mapping[str, str], console: Console) -> None:
    """Everything, for a reader."""
    for finding in findings:
        console.print(_table(finding))
    for name, value in around.items():
        console.print(f"{name:>9}  {value}", highlight=False)
    console.print("Not claimed:")
    for line in NOT_CLAIMED:
        console.print(f"  - {line}", highlight=False)


def _section(finding: Finding) -> str:
    columns = ("case", "variant", "median", "middle half", "ratio", "middle half", "to", "expected", "note")
    lines = [columns, tuple("---" for _ in columns), *(_cells(row, shown=True) for row in finding.rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"### {finding.name}\n\n{finding.about}\n\n{table}"


def _table(finding: Finding) -> Table:
    table = Table(title=finding.name, caption=finding.about, title_justify="left", caption_justify="left")
    for name in ("case", "variant"):
        table.add_column(name)
    for name in ("median", "middle half", "ratio", "middle half"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("to")
    table.add_column("expected", justify="right", no_wrap=True)
    table.add_column("note")
    before = ""
    for row in finding.rows:
        if before not in ("", row.case):
            table.add_section()
        table.add_row(*_cells(row, shown=row.case != before))
        before = row.case
    return table


def _cells(row: Row, *, shown: bool) -> tuple[str, ...]:
    ratio, middle = ("", "") if row.ratio is None else (f"{row.ratio.median:.2f}×", _middle(row.ratio))
    unit = "" if row.ratio else f" {row.unit}"
    verdict = "" if row.met is None else f"{row.expected}{unit} {'✓' if row.met else '✗'}"
    return (
        row.case if shown else "",
        row.variant,
        f"{_short(row.figure.median)} {row.unit}",
        _middle(row.figure),
        ratio,
        middle,
        row.against or "",
        verdict,
        row.note,
    )


def _middle(spread: Spread) -> str:
    return f"{_short(spread.low)}–{_short(spread.high)}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unnamed"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unnamed")
