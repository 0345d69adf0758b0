"""What must hold of an agent's document and its segments, whatever was written and by whom: each flaw in a sentence.

Pure. A `Past` is told of the segments, one after another, and remembers of them what the rest is held against. A flaw
that follows from the rest of the document can be mended: then it says by which assignments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from models.agent import OF_A_TOMBSTONE, STORED, AgentRecord
from models.blob import Damaged
from models.change import OP_SLOTS
from models.execution import IN_TURN, State, activity_of, status_of
from models.history import History
from models.ids import RESERVED, ROOT, WORKSPACE
from models.profile import label_terms
from models.prompt import DEPTH_LIMIT, FIELD, StoredPrompt, is_prompt
from models.segment import INHERITED_VERSION, Descriptor, Segment, Tree, line

_OF_A_STEP = ("seq", "version", "parent_id", "turn_id", "index", "role", "created_at")
_UNREADABLE = (AttributeError, LookupError, TypeError, ValueError, Damaged)


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something that does not hold. `mend`: the fields to assign, where nothing but that follows from the rest."""

    text: str
    mend: Mapping[str, Any] = field(default_factory=dict)


class _Outline(NamedTuple):
    """What of a stored prompt can be right or wrong."""

    step: str
    reused: int
    tail: int | None
    """Messages of the tail, where they are in it."""
    messages: int
    depth: int

    @classmethod
    def of(cls, stored: Any) -> _Outline:
        prompt = StoredPrompt.of(stored)
        tail = len(prompt.tail) if isinstance(prompt.tail, list) else None
        return cls(prompt.step, prompt.reused, tail, prompt.count, prompt.depth)


class Past:
    """What is remembered of an agent's segments: their trees and the outlines of their prompts."""

    def __init__(self, trees: Mapping[str, Tree] | None = None) -> None:
        self.trees: dict[str, Tree] = dict(trees or {})
        self.prompts: dict[str, dict[str, _Outline]] = {}
        """By segment and step."""
        self.sizes: dict[str, int] = {}

    def add(self, segment: Segment) -> None:
        """Remember a segment. Raises KeyError, TypeError, Damaged where it can't be read."""
        self.trees[segment.id] = segment.tree
        self.prompts[segment.id] = _outlines(segment.steps)
        self.sizes[segment.id] = segment.size


def flaws(document: Mapping[str, Any], past: Past) -> list[Flaw]:
    """Everything that does not hold of a stored agent; what can't even be read is a flaw too."""
    try:
        record = AgentRecord.of({**document, "history": History(trees=past.trees)})
        if record.deleted_at is not None:
            return [*_identity(record), *_of_a_tombstone(record, document)]
        missing = [kept for kept in record.descriptors if kept.id not in past.trees]
        if missing:
            return [*_identity(record), *(Flaw(f"its segment {kept.id} is not there") for kept in missing)]
        return [*_identity(record), *_of_an_agent(record, past)]
    except _UNREADABLE as error:
        return [Flaw(f"it can't be read ({type(error).__name__}: {error})")]


def flaws_of_segment(segment: Segment, document: Mapping[str, Any]) -> list[Flaw]:
    """Everything that does not hold of a segment, and of what is stored beside its content, by itself."""
    try:
        return list(_of_a_segment(segment, document))
    except _UNREADABLE as error:
        return [Flaw(f"it can't be read ({type(error).__name__}: {error})")]


def _of_a_segment(segment: Segment, document: Mapping[str, Any]) -> Iterator[Flaw]:
    for name, value in segment.outside().items():
        if document.get(name) != value:
            yield Flaw(f"its {name} are not those of its steps, or of its key")
    for step in segment.results.keys() - segment.steps.keys():
        yield Flaw(f"results are bound to '{step}', which is not in it")
    seqs = [node.seq for node in segment.tree.values()]
    if seqs != sorted(set(seqs)):
        yield Flaw("its steps are not in the order of their seq")
    for step, body in segment.steps.items():
        yield from _fields_missing(step, body)


def _identity(record: AgentRecord) -> Iterator[Flaw]:
    if record.id.partition(":")[0] != record.tenant:
        yield Flaw(f"its tenant is '{record.tenant}', and its key names another")
    if record.version < 1:
        yield Flaw(f"its version is {record.version}")
    if record.last.get("v") != record.version:
        yield Flaw(f"it is at version {record.version}, its newest commit at {record.last.get('v', 'none')}")
    if str(record.version % OP_SLOTS) not in record.ops:
        yield Flaw("its newest commit left no operation id")


def _of_a_tombstone(record: AgentRecord, document: Mapping[str, Any]) -> Iterator[Flaw]:
    content = sorted(set(STORED).intersection(document).difference(OF_A_TOMBSTONE))
    if content:
        yield Flaw(f"it is a tombstone and has content: {', '.join(content)}")
    if record.fence < 0:
        yield Flaw(f"its fence is {record.fence}")


def _of_an_agent(record: AgentRecord, past: Past) -> Iterator[Flaw]:
    there = {step for kept in record.descriptors for step in kept.seen(record.tree(kept))} | record.steps.keys()
    yield from _segments(record, past, there)
    yield from _steps(record, there)
    yield from _places(record, {ROOT, *there})
    yield from _derived(record)
    yield from _prompts(record, past, there)


def _segments(record: AgentRecord, past: Past, there: AbstractSet[str]) -> Iterator[Flaw]:
    """Descriptors say of segments what is so, and segments come one after another, before what is not sealed."""
    seq = 0
    for key, stored in sorted(record.sealed.items(), key=lambda kept: int(kept[1]["from_seq"])):
        kept = Descriptor.read(stored)
        yield from _of_a_descriptor(kept, record.tree(kept), past, there)
        if key != str(kept.from_seq):
            yield Flaw(f"its segment {kept.id} is kept under {key}")
        if kept.from_seq <= seq:
            yield Flaw(f"its segment {kept.id} does not come after the one before it")
        if kept.id.partition(":")[0] != record.tenant:
            yield Flaw(f"its segment {kept.id} is another tenant's")
        seq = kept.to_seq
    if any(body.get("seq", 0) <= seq for body in record.steps.values()):
        yield Flaw("a step in the document is older than one that is sealed")


def _of_a_descriptor(kept: Descriptor, tree: Tree, past: Past, there: AbstractSet[str]) -> Iterator[Flaw]:
    seen = kept.seen(tree)
    if not seen:
        yield Flaw(f"of its segment {kept.id} nothing is seen")
        return
    first, last = tree[seen[0]], tree[seen[-1]]
    highest = INHERITED_VERSION if kept.inherited else max(tree[step].version for step in seen)
    fields = {field for step in tree.values() for field in step.bound}
    found = (seen[-1], len(seen), first.seq, last.seq, highest, bool(fields - RESERVED), WORKSPACE in fields)
    said = (kept.last, kept.count, kept.from_seq, kept.to_seq, kept.to_version, kept.results, kept.workspaces)
    other_size = not kept.part and past.sizes.get(kept.id, kept.bytes) != kept.bytes
    if found != said or other_size:
        yield Flaw(f"what it says of its segment {kept.id} is not so")
    if kept.chain and (line(tree, kept.last) != seen or first.parent_id != kept.parent):
        yield Flaw(f"its segment {kept.id} is not the line that it says")
    if first.parent_id != ROOT and first.parent_id not in there:
        yield Flaw(f"its segment {kept.id} hangs from '{first.parent_id}', which is not there")


def _fields_missing(step: str, body: Mapping[str, Any]) -> Iterator[Flaw]:
    missing = [name for name in _OF_A_STEP if name not in body]
    if missing:
        yield Flaw(f"the step '{step}' has no {', '.join(missing)}")


def _steps(record: AgentRecord, there: AbstractSet[str]) -> Iterator[Flaw]:
    """Each step hangs from one that is there and came before it; numbers are in their bounds, and each seq is one's."""
    for step in there:
        missing = [] if step not in record.steps else list(_fields_missing(step, record.steps[step]))
        yield from missing
        if not missing:
            yield from _of_a_step(record, step, there)
    for seq, times in Counter(body.get("seq") for body in record.steps.values()).items():
        if times > 1:
            yield Flaw(f"{times} steps have the seq {seq}")


def _of_a_step(record: AgentRecord, step: str, there: AbstractSet[str]) -> Iterator[Flaw]:
    node = record.node(step)
    parent = node.parent_id
    if parent != ROOT and parent not in there:
        yield Flaw(f"the step '{step}' hangs from '{parent}', which is not there")
    elif parent != ROOT and record.node(parent).seq >= node.seq:
        yield Flaw(f"the step '{step}' has seq {node.seq} and hangs from one that is not before it")
    if not 0 < node.seq <= record.seq:
        yield Flaw(f"the step '{step}' has seq {node.seq}, the agent's highest is {record.seq}")
    if not 0 < node.version <= record.version:
        yield Flaw(f"the step '{step}' is of version {node.version}, the agent at {record.version}")


def _places(record: AgentRecord, there: AbstractSet[str]) -> Iterator[Flaw]:
    """HEAD, branches, redo stack and results name steps that are there."""
    if record.branch is not None and record.branch not in record.branches:
        yield Flaw(f"its current branch '{record.branch}' is not there")
    elif record.head not in there:
        yield Flaw(f"its HEAD '{record.head}' is not there")
    for branch, step in record.branches.items():
        if step not in there:
            yield Flaw(f"the branch '{branch}' points at '{step}', which is not there")
    for step in record.results.keys() - there:
        yield Flaw(f"results are bound to '{step}', which is not there")
    kept = [step for step in record.redo if step in there]
    if kept != record.redo:
        yield Flaw("its redo stack names steps that are not there", {"redo": kept})


def _derived(record: AgentRecord) -> Iterator[Flaw]:
    """What only repeats something else says the same."""
    for name, should in (
        ("step_count", len(record.steps) + sum(kept.count for kept in record.descriptors)),
        ("label_terms", label_terms(record.labels)),
        ("status", status_of(State(record.state))),
        ("activity", activity_of(State(record.state))),
    ):
        if getattr(record, name) != should:
            yield Flaw(f"its {name} is {getattr(record, name)!r} and should be {should!r}", {name: should})
    if record.turn is not None and record.state not in IN_TURN:
        yield Flaw(f"it is {record.state} and has an open turn", {"turn": None})


def _outlines(steps: Mapping[str, Mapping[str, Any]]) -> dict[str, _Outline]:
    """The prompts of steps that go on from others', or others' go on from."""
    stored = ((step, body.get(FIELD)) for step, body in steps.items())
    return {step: _Outline.of(prompt) for step, prompt in stored if is_prompt(prompt)}


def _prompts(record: AgentRecord, past: Past, there: AbstractSet[str]) -> Iterator[Flaw]:
    outlines = _outlines(record.steps)
    for kept in record.descriptors:
        held = past.prompts.get(kept.id, {})
        outlines |= {step: held[step] for step in kept.seen(record.tree(kept)) if step in held}
    for step in outlines.keys() & there:
        for text in _of_a_prompt(record, step, outlines, there):
            yield Flaw(f"the prompt of the step '{step}' {text}")


def _of_a_prompt(
    record: AgentRecord, step: str, outlines: Mapping[str, _Outline], there: AbstractSet[str]
) -> Iterator[str]:
    prompt = outlines[step]
    if prompt.tail is not None and prompt.reused + prompt.tail != prompt.messages:
        yield f"has {prompt.reused} and {prompt.tail} messages and says {prompt.messages}"
    if not prompt.reused:
        return
    base = outlines.get(prompt.step)
    if base is None:
        yield f"goes on from the step '{prompt.step}', which has none"
        return
    if base.messages < prompt.reused:
        yield f"takes {prompt.reused} messages from the step '{prompt.step}', which has {base.messages}"
    if not base.depth < prompt.depth <= DEPTH_LIMIT:
        yield f"is {prompt.depth} steps deep and goes on from one that is {base.depth}"
    if not _is_above(record, prompt.step, step, there):
        yield f"goes on from the step '{prompt.step}', which is not on its path"


def _is_above(record: AgentRecord, above: str, step: str, there: AbstractSet[str]) -> bool:
    """Whether a step lies on the path to another, along which seq only grows."""
    if above not in there:
        return False
    seq = record.node(above).seq
    while step != above:
        node = record.node(step)
        if node.parent_id not in there or not seq <= record.node(node.parent_id).seq < node.seq:
            return False
        step = node.parent_id
    return True
