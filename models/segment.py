"""Segments: the older steps of an agent that outgrew one document, with the results bound to them, sealed for good.

An agent keeps a *descriptor* of each of its segments, nothing of each sealed step. Segments never change, so forks
share them: a fork's descriptor shows of a segment only the path that it inherited. Nothing here reads or writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import bson
from beanie import Document
from pydantic import Field
from pymongo import IndexModel

from models.ids import RESERVED, ROOT, WORKSPACE

_DIGITS = 40

Step = dict[str, Any]
Bound = dict[str, Any]
"""What is bound to a step: results by field name, and the workspace."""

INHERITED_VERSION = 1
"""The version that a fork's inherited steps read as."""


class Node(NamedTuple):
    """What is known of a step without its content."""

    parent_id: str
    seq: int
    turn_id: str
    version: int
    bound: Collection[str] = ()
    """Of a sealed step: field names of what is bound to it, and of the workspace that it brought."""


Tree = Mapping[str, Node]
"""Steps by id, in the order of their seq."""


@dataclass(frozen=True)
class Segment:
    """Steps in the order of their seq, and what is bound to them."""

    id: str
    """`<tenant>:<agent that sealed it>:<digest of the content>`"""
    steps: Mapping[str, Step]
    results: Mapping[str, Bound]
    size: int
    """Bytes of its content."""

    @classmethod
    def made(cls, agent: str, steps: Mapping[str, Step], results: Mapping[str, Bound]) -> Segment:
        """A new one. Named by its content, so that whoever seals the same makes the same."""
        content = _content(steps, results)
        return cls(f"{agent}:{hashlib.sha256(content).hexdigest()[:_DIGITS]}", steps, results, len(content))

    @cached_property
    def tree(self) -> Tree:
        """The steps without their content."""
        return {step: node_of(body)._replace(bound=self._bound(step)) for step, body in self.steps.items()}

    def outside(self) -> dict[str, Any]:
        """What is stored of it beside its content: its tree, to be read and searched alone."""
        nodes = self.tree.values()
        return {
            "tenant": self.id.partition(":")[0],
            "agent": origin_of(self.id),
            "ids": list(self.tree),
            "parents": [node.parent_id for node in nodes],
            "seqs": [node.seq for node in nodes],
            "turns": [node.turn_id for node in nodes],
            "versions": [node.version for node in nodes],
            "bound": [node.bound for node in nodes],
        }

    def content(self) -> bytes:
        """What is in it, as BSON of `steps` and `results`."""
        return _content(self.steps, self.results)

    def _bound(self, step: str) -> list[str]:
        own = [WORKSPACE] if "workspace" in self.steps[step] else []
        return sorted({*self.results.get(step, {}), *own})


def _content(steps: Mapping[str, Step], results: Mapping[str, Bound]) -> bytes:
    return bson.encode({"steps": steps, "results": results})


TREE_FIELDS = ("ids", "parents", "seqs", "turns", "versions", "bound")
"""Fields of a stored segment that hold its tree, in lists of equal length."""


def tree_of(document: Mapping[str, Any]) -> Tree:
    """The tree of a stored segment. Raises KeyError, ValueError when it is not whole."""
    ids, parents, seqs, turns, versions, bound = (document[name] for name in TREE_FIELDS)
    nodes = (Node(*row) for row in zip(parents, seqs, turns, versions, bound, strict=True))
    return dict(zip(ids, nodes, strict=True))


def node_of(body: Mapping[str, Any]) -> Node:
    """A stored step without its content."""
    return Node(body["parent_id"], body["seq"], body["turn_id"], body["version"])


def origin_of(segment: str) -> str:
    """The `_id` of the agent that sealed a segment."""
    return segment.rpartition(":")[0]


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What an agent keeps of a segment, and so what it sees of it.

    Where `chain`, what is seen is one line: from `last` upwards to the step whose parent is `parent`.
    """

    id: str
    last: str
    """The step of the highest seq."""
    parent: str
    """Where the line leads on; empty where there is none."""
    chain: bool
    part: bool
    """Whether only the line from `last` upwards is seen, and not the whole segment."""
    inherited: bool
    count: int
    from_seq: int
    to_seq: int
    to_version: int
    """The highest version that a step reads as."""
    bytes: int
    """BSON bytes of steps and results; of a part, its share by number of steps."""
    results: bool
    workspaces: bool
    """Whether there is any in the segment."""

    @classmethod
    def of(cls, segment: Segment) -> Descriptor:
        """What the agent that seals it keeps."""
        ids, nodes = list(segment.tree), list(segment.tree.values())
        above = [nodes[0].parent_id, *ids]
        chain = all(node.parent_id == parent for node, parent in zip(nodes, above, strict=False))
        fields = {field for node in nodes for field in node.bound}
        return cls(
            id=segment.id,
            last=ids[-1],
            parent=nodes[0].parent_id if chain else "",
            chain=chain,
            part=False,
            inherited=False,
            count=len(ids),
            from_seq=nodes[0].seq,
            to_seq=nodes[-1].seq,
            to_version=max(node.version for node in nodes),
            bytes=segment.size,
            results=bool(fields - RESERVED),
            workspaces=WORKSPACE in fields,
        )

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Descriptor:
        """From an agent's document; what a later release keeps beside is left alone. Raises KeyError."""
        return cls(**{name: kept[name] for name in cls.__slots__})

    def stored(self) -> dict[str, Any]:
        """As it is kept in the agent's document."""
        return asdict(self)

    def seen(self, tree: Tree) -> list[str]:
        """The steps of the segment's tree that this agent sees, in the order of their seq."""
        return line(tree, self.last) if self.part else list(tree)


def line(tree: Tree, leaf: str) -> list[str]:
    """The path to a step as far as the tree holds it, from above."""
    found: list[str] = []
    while leaf != ROOT and leaf in tree:
        found.append(leaf)
        leaf = tree[leaf].parent_id
    found.reverse()
    return found


class StoredSegment(Document):
    """The collection of segments. `_id` = `<tenant>:<agent>:<name>`."""

    id: str = Field(alias="_id")  # type: ignore[assignment]  # the base has an ObjectId
    tenant: str
    agent: str = Field(description="The agent that sealed it.")
    ids: list[str]
    parents: list[str]
    seqs: list[int]
    turns: list[str]
    versions: list[int]
    bound: list[list[str]]
    data: bytes = Field(description="zstd of the BSON of steps and results")
    mark: str | None = Field(default=None, description="Set by a collector that found no agent to keep it.")

    class Settings:
        name = "segments"
        indexes = [
            IndexModel([("agent", 1), ("ids", 1)], name="by_step"),
            IndexModel([("agent", 1), ("turns", 1)], name="by_turn"),
        ]
