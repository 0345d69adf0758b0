"""`python -m scripts.bench.peers_worker.plots FILE FOLDER`: draw what `peers` found, cost against size."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

_COMMAND = 'make bench ARGS="--only peers --plots docs/plots"'
_PLOTS = {
    "bytes stored": ("peers_bytes.svg", "Bytes stored for one agent", "bytes"),
    "time per step": ("peers_step.svg", "Time per step, p50", "milliseconds"),
    "latest state": ("peers_state.svg", "Loading the latest state, p50", "milliseconds"),
    "whole history": ("peers_history.svg", "Loading the whole history, p50; stopped after 4 s", "milliseconds"),
}
_MARKS = "os^vD<>P*Xpdh"
_COLORS = {"holdfast": "#c1272d", "LangGraph, M": "#0b6e4f", "LangGraph, S": "#1f77b4", "LangGraph, P": "#6a4c93"}

Curves = dict[str, dict[int, float]]


def main() -> None:
    """A file for each measure."""
    found = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[2])
    # The same figures give the same bytes, and text is drawn as outlines: it looks alike wherever it is seen.
    mpl.rcParams.update({"svg.hashsalt": "peers", "svg.fonttype": "path", "font.size": 10})
    measures = _curves(found["findings"])
    for measure, (name, title, unit) in _PLOTS.items():
        if measure in measures:
            figure = _drawn(measures[measure], title, unit, _origin(found["surroundings"]))
            figure.savefig(folder / name, metadata={"Date": None}, bbox_inches="tight")


def _curves(findings: list[dict[str, Any]]) -> dict[str, Curves]:
    """By measure and variant, the median at each size."""
    found: dict[str, Curves] = defaultdict(lambda: defaultdict(dict))
    for row in (row for finding in findings if finding["name"] == "peers" for row in finding["rows"]):
        size, _, measure = row["case"].partition(" steps, ")
        found[measure][row["variant"]][int(size)] = row["figure"]["median"]
    return found


def _drawn(curves: Curves, title: str, unit: str, origin: str) -> Figure:
    figure = Figure(figsize=(10.5, 6))
    axes = figure.add_subplot()
    for (name, points), mark in zip(curves.items(), _MARKS * 2, strict=False):
        axes.loglog(*zip(*sorted(points.items()), strict=True), label=name, marker=mark, **_style(name))
    sizes = sorted({size for points in curves.values() for size in points})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_title(f"{title} (log-log; lower is better)")
    axes.set_xlabel("steps of the agent, each with a message of 1,000 bytes")
    axes.set_ylabel(unit)
    axes.grid(visible=True, which="both", linewidth=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=9)
    figure.text(0.02, -0.04, origin, fontsize=8, color="#444444")
    return figure


def _style(name: str) -> dict[str, Any]:
    own = name.startswith("holdfast")
    color = next((color for start, color in _COLORS.items() if name.startswith(start)), "#b8860b")
    line = ":" if "one run" in name else "--" if "DeltaChannel" in name else "-"
    alpha = 0.45 if own and "no-cache" not in name else 1.0
    return {"color": color, "linestyle": line, "linewidth": 2.4 if own else 1.3, "alpha": alpha, "markersize": 5}


def _origin(around: dict[str, str]) -> str:
    return f"{around['date']}; {around['machine']}; MongoDB {around['mongodb']}; {_COMMAND}"


if __name__ == "__main__":
    main()
