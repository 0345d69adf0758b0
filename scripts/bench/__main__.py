"""`python -m scripts.bench`: run the benchmarks, print the table."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import orjson
import typer
import uvloop
from rich.console import Console

from app.telemetry import configure_logging
from scripts.bench import (
    append_http,
    append_many,
    big_reader,
    cached_read,
    embedding,
    episode_lag,
    episodes,
    growth,
    lag,
    memory,
    oplog_bytes,
    patch,
    peers,
    prompt_bytes,
    read_500,
    read_apart,
    recall,
    recall_bytes,
    recall_start,
    replicas,
    runners,
    soak,
    strong_read,
)
from scripts.bench.lab import Lab, laboratory
from scripts.bench.report import Finding, as_json, as_markdown, show, surroundings
from scripts.bench.scale import FULL, QUICK, Scale

Benchmark = Callable[[Lab, Scale], Awaitable[Finding]]

_BENCHMARKS: dict[str, Benchmark] = {
    bench.NAME: bench.run
    for bench in (
        append_http,
        append_many,
        oplog_bytes,
        prompt_bytes,
        growth,
        big_reader,
        read_500,
        read_apart,
        strong_read,
        cached_read,
        patch,
        lag,
        memory,
        episodes,
        recall,
        recall_start,
        recall_bytes,
        episode_lag,
        embedding,
        replicas,
        runners,
        soak,
        peers,
    )
}
_WIDTH = 160


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(_BENCHMARKS)}; may be repeated.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A glance: that everything runs, not what it costs.")] = False,
    json: Annotated[Path | None, typer.Option(help="Also write all figures to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the tables to this file.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Also draw what `peers` found into this folder.")] = None,
    uri: Annotated[str | None, typer.Option(help="Measure on this replica set, not on an embedded one.")] = None,
) -> None:
    """Measure appends, reads and the oplog beside the bare driver, in turns. Nothing is left behind."""
    chosen = only or list(_BENCHMARKS)
    if unknown := set(chosen) - _BENCHMARKS.keys():
        raise typer.BadParameter(f"unknown: {', '.join(sorted(unknown))}", param_hint="--only")
    configure_logging("warning", "console")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        findings, around = runner.run(_measure(chosen, QUICK if quick else FULL, uri))
    show(findings, around, Console(width=_WIDTH))
    if markdown is not None:
        markdown.write_text(as_markdown(findings))
    if json is not None:
        json.write_bytes(orjson.dumps(as_json(findings, around), option=orjson.OPT_INDENT_2))
    if plots is not None:
        peers.plot(findings, around, plots)


async def _measure(chosen: list[str], scale: Scale, uri: str | None) -> tuple[list[Finding], dict[str, str]]:
    progress = Console(stderr=True)
    findings: list[Finding] = []
    async with laboratory(uri) as lab:
        for name in chosen:
            progress.print(f"measuring {name} …")
            findings.append(await _BENCHMARKS[name](lab, scale))
    return findings, surroundings(lab.server)


if __name__ == "__main__":
    typer.run(main)
