"""One client that appends one step after another: over HTTP, in process, and with the bare driver."""

from __future__ import annotations

from contextlib import AsyncExitStack

from app.runtime import Runtime
from scripts.bench.lab import Lab
from scripts.bench.material import make_agent
from scripts.bench.report import Finding, Row, compared
from scripts.bench.rounds import Variant, milliseconds_each, take_turns
from scripts.bench.scale import Scale
from scripts.bench.ways import Way, by_driver, by_guarded_driver, by_http, by_service

NAME = "append_http"
_ABOUT = (
    "p50 of one append of a 1 KB step, one client, majority and journal, to a new agent in each turn. The client of "
    "the HTTP rows is a bare socket with requests made of bytes, so that its cost is not counted as the service's."
)
_DRIVER = "driver, $set"
_WARM_UP = 5


async def run(lab: Lab, scale: Scale) -> Finding:
    """Measure agents that are short and long already."""
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(lab.runtime())
        driver = await stack.enter_async_context(lab.driver())
        connection = await stack.enter_async_context(lab.connection())
        ways = {
            _DRIVER: by_driver(driver),
            "driver, guarded": by_guarded_driver(driver),
            "holdfast, in process": by_service(runtime.agents),
            "holdfast, HTTP": by_http([connection]),
        }
        rows = [row for steps in (10, 500) for row in await _compare(runtime, ways, steps, scale)]
    return Finding(NAME, _ABOUT, rows)


async def _compare(runtime: Runtime, ways: dict[str, Way], steps: int, scale: Scale) -> list[Row]:
    variants = [_variant(runtime, name, way, steps, scale) for name, way in ways.items()]
    figures = await take_turns(variants, scale.rounds)
    return compared(f"{steps} steps", "ms", figures, against=_DRIVER)


def _variant(runtime: Runtime, name: str, way: Way, steps: int, scale: Scale) -> Variant:
    async def turn() -> list[float]:
        agent = await make_agent(runtime.agents, steps)
        await milliseconds_each(lambda: way(0, agent), _WARM_UP)
        return await milliseconds_each(lambda: way(0, agent), scale.calls)

    return Variant(name, turn)
