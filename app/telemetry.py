"""What the service tells about itself: structured logs and Prometheus metrics.

Guarantee: neither holds a body, a secret or an agent's content; ids, counts, sizes and times only.
"""

from __future__ import annotations

import logging
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_AGES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 1, 1.5, 2)
_BYTES = (256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216)


class Metrics:
    """The counters of one replica, in a registry of their own so that two in one process don't mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.commits = self._counter("commits", "Accepted writes that changed an agent, by kind.", "kind")
        self.updates = self._counter("updates", "Guarded database updates that were applied.")
        self.folded = self._counter("folded_requests", "Requests that shared their update with an earlier one.")
        self.rebases = self._counter("rebases", "Times that a move was applied anew to a newer version.")
        self.refusals = self._counter("refusals", "Requests refused, by code.", "code")
        self.unknown = self._counter("unknown_outcomes", "Writes whose outcome had to be settled.")
        self.settled = self._counter("settled_outcomes", "Unknown writes settled, by what they turned out to be.", "as")
        self.unanswered = self._counter("unanswered_writes", "Writes answered 503 before their outcome was known.")
        self.replays = self._counter("idempotent_replays", "Requests answered from their idempotency record.")
        self.commit_seconds = self._histogram("commit_seconds", "From asking for a commit to its outcome.", _SECONDS)
        self.load_seconds = self._histogram("load_seconds", "Reading one agent from the database.", _SECONDS)
        self.update_bytes = self._histogram("update_bytes", "BSON bytes of the assignments of one update.", _BYTES)
        self.bulk_size = self._histogram("bulk_updates", "Agents in one bulk write.", (1, 2, 4, 8, 16, 32, 64, 128))
        self.staleness = self._spread(
            "read_age_seconds", "By how much what was read may be behind.", (), _AGES
        ).labels()
        self.stream_lag = self._histogram("stream_lag_seconds", "From a heartbeat's sending to its return.", _SECONDS)
        self.events = self._counter("stream_events", "Change events of agents that were told.")
        self.stream_closed = self._counter("stream_closed", "Times that the change stream ended and was opened anew.")
        self.stream_lost = self._counter("stream_lost", "Times that the database no longer had what was missed.")
        self.claims = self._counter("claims", "Agents that were claimed by runners.")
        self.expired = self._counter("runners_expired", "Runners that were silent for too long and declared dead.")
        self.freed = self._counter(
            "agents_freed", "Agents that lost a dead runner, or a turn that nobody went on with."
        )
        self.request_seconds = self._spread(
            "http_request_seconds",
            "HTTP requests by method, route and status.",
            ("method", "route", "status"),
            _SECONDS,
        )

    def show(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that asks for its value when it is read."""
        Gauge(f"holdfast_{name}", text, registry=self.registry).set_function(value)

    def tell(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A counter that someone else keeps and is asked for when it is read."""
        self.registry.register(_Kept(f"holdfast_{name}", text, value))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"holdfast_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"holdfast_{name}", text, buckets=buckets, registry=self.registry)

    def _spread(self, name: str, text: str, labels: tuple[str, ...], bounds: tuple[float, ...]) -> Distributions:
        spread = Distributions(f"holdfast_{name}", text, labels, bounds)
        self.registry.register(spread)
        return spread


class Distribution:
    """How values are spread over buckets; counts in one thread, without a lock, in a tenth of the library's time."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def told(self) -> tuple[list[tuple[str, float]], float]:
        """How many values lie at or below each bound, and the sum of all."""
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        return list(zip(bounds, accumulate(self._counts), strict=True)), self._sum


class Distributions(Collector):
    """A histogram of one distribution for each combination of its labels' values."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...], bounds: tuple[float, ...]) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._bounds = bounds
        self._each: dict[tuple[str, ...], Distribution] = {}

    def labels(self, *values: object) -> Distribution:
        """The distribution of these labels; the same one, however often it is asked for."""
        key = tuple(map(str, values))
        if key not in self._each:
            self._each[key] = Distribution(self._bounds)
        return self._each[key]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The histogram as it stands."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, distribution in self._each.items():
            family.add_metric(values, *distribution.told())
        yield family


class _Kept(Collector):
    """A counter whose value stands elsewhere."""

    def __init__(self, name: str, text: str, value: Callable[[], float]) -> None:
        self._name = name
        self._text = text
        self._value = value

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The counter as it stands."""
        yield CounterMetricFamily(self._name, self._text, value=self._value())


def configure_logging(level: str, form: str) -> None:
    """Send every log line, the libraries' too, to stderr: JSON, or colours on a terminal. Units stand in the names."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for noisy in ("pymongo", "asyncio", "uvicorn.error", "httpx"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
