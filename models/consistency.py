"""What must hold of an agent's document, whatever was written and by whom: each flaw in a sentence. Pure.

A flaw that follows from the rest of the document can be mended: then it says by which assignments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from models.agent import OF_A_TOMBSTONE, STORED, AgentRecord
from models.blob import Damaged
from models.change import OP_SLOTS
from models.execution import State, status_of
from models.ids import ROOT
from models.profile import label_terms
from models.prompt import DEPTH_LIMIT, FIELD, StoredPrompt, is_prompt

_OF_A_STEP = ("seq", "version", "parent_id", "turn_id", "index", "role", "created_at")


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something that does not hold. `mend`: the fields to assign, where nothing but that follows from the rest."""

    text: str
    mend: Mapping[str, Any] = field(default_factory=dict)


def flaws(document: Mapping[str, Any]) -> list[Flaw]:
    """Everything that does not hold of a stored agent; what can't even be read is a flaw too."""
    try:
        record = AgentRecord.of(document)
        checks = _of_a_tombstone(record, document) if record.deleted_at is not None else _of_an_agent(record)
        return [*_identity(record), *checks]
    except (AttributeError, KeyError, TypeError, ValueError, Damaged) as error:
        return [Flaw(f"it can't be read ({type(error).__name__}: {error})")]


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


def _of_an_agent(record: AgentRecord) -> Iterator[Flaw]:
    yield from _steps(record)
    yield from _places(record)
    yield from _derived(record)
    yield from _prompts(record)


def _steps(record: AgentRecord) -> Iterator[Flaw]:
    for step, body in record.steps.items():
        missing = [name for name in _OF_A_STEP if name not in body]
        if missing:
            yield Flaw(f"the step '{step}' has no {', '.join(missing)}")
            continue
        parent = body["parent_id"]
        if parent != ROOT and parent not in record.steps:
            yield Flaw(f"the step '{step}' hangs from '{parent}', which is not there")
        elif parent != ROOT and record.steps[parent].get("seq", 0) >= body["seq"]:
            yield Flaw(f"the step '{step}' has seq {body['seq']} and hangs from one that is not before it")
        if not 0 < body["seq"] <= record.seq:
            yield Flaw(f"the step '{step}' has seq {body['seq']}, the agent's highest is {record.seq}")
        if not 0 < body["version"] <= record.version:
            yield Flaw(f"the step '{step}' is of version {body['version']}, the agent at {record.version}")
    for seq, times in Counter(body.get("seq") for body in record.steps.values()).items():
        if times > 1:
            yield Flaw(f"{times} steps have the seq {seq}")


def _places(record: AgentRecord) -> Iterator[Flaw]:
    """HEAD, branches, redo stack and results name steps that are there."""
    there = {ROOT, *record.steps}
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
        ("step_count", len(record.steps)),
        ("label_terms", label_terms(record.labels)),
        ("status", status_of(State(record.state))),
    ):
        if getattr(record, name) != should:
            yield Flaw(f"its {name} is {getattr(record, name)!r} and should be {should!r}", {name: should})


def _prompts(record: AgentRecord) -> Iterator[Flaw]:
    for step, body in record.steps.items():
        stored = body.get(FIELD)
        if is_prompt(stored):
            yield from (Flaw(f"the prompt of the step '{step}' {text}") for text in _of_a_prompt(record, step, stored))


def _of_a_prompt(record: AgentRecord, step: str, stored: Any) -> Iterator[str]:
    prompt = StoredPrompt.of(stored)
    if isinstance(prompt.tail, list) and prompt.reused + len(prompt.tail) != prompt.count:
        yield f"has {prompt.reused} and {len(prompt.tail)} messages and says {prompt.count}"
    if not prompt.reused:
        return
    before = record.steps.get(prompt.step, {})
    earlier: Any = before.get(FIELD)
    if not is_prompt(earlier):
        yield f"goes on from the step '{prompt.step}', which has none"
        return
    base = StoredPrompt.of(earlier)
    if base.count < prompt.reused:
        yield f"takes {prompt.reused} messages from the step '{prompt.step}', which has {base.count}"
    if not base.depth < prompt.depth <= DEPTH_LIMIT:
        yield f"is {prompt.depth} steps deep and goes on from one that is {base.depth}"
    if not _is_above(record, prompt.step, step):
        yield f"goes on from the step '{prompt.step}', which is not on its path"


def _is_above(record: AgentRecord, above: str, step: str) -> bool:
    """Whether a step lies on the path to another, along which seq only grows."""
    seq = record.steps[above]["seq"]
    while step != above:
        parent = record.steps[step]["parent_id"]
        if parent not in record.steps or not seq <= record.steps[parent]["seq"] < record.steps[step]["seq"]:
            return False
        step = parent
    return True
