"""The benchmark `peers`: agents kept here, over HTTP, beside agents kept by what others use.

The peers run as processes of their own in a virtual environment of their own (`scripts.bench.peers_worker`), so that
nothing of theirs is needed here.
"""

from scripts.bench.peers.comparison import NAME, run
from scripts.bench.peers.plots import plot

__all__ = ["NAME", "plot", "run"]
