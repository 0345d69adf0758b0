"""Reading trace files: what an agent did elsewhere, as steps that Holdfast can append.

Nothing here knows a database, a tenant or the network: bytes of a file in, frozen values out.

Three kinds of content are understood, whatever the file is called:

* SWE-agent trajectories: an object with `history` and/or `trajectory`;
* OpenAI-style messages: a list of them, an object with `messages`, or JSON Lines of either;
* Holdfast exports: an object with `holdfast`, a list of such objects, or JSON Lines of them.

Guarantee: nothing a file holds is dropped and nothing is altered. A value that a step has a field for moves into that
field; what has none, or had to be put in other words, stands under the step's `data` as it was:

* `data.message`: the rest of the message that the step was made from;
* `data.trajectory`: the entry of `trajectory` that belongs to the step (its `messages`, or `query`, are the step's
  `input_messages`);
* `data.file`: on the first step, whatever stood beside the messages (`info`, `environment`, `replay_config`, …).

A file that cannot be taken whole is refused whole, with a `TraceError`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import SequenceMatcher
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

MAX_BYTES = 256 * 1024 * 1024
MAX_DEPTH = 32
"""Objects and lists inside each other, in the file and in the body of an append."""

STEP_DEPTH = MAX_DEPTH - 2
"""What is left for one step inside `{"steps": [step]}`."""

INPUT_DEPTH = STEP_DEPTH - 3
"""What is left for a tool call's input inside its step."""

EXACT_PAIRS = 1_000_000
"""Entries times messages up to which matching them spares no time."""

ACCEPTED = (
    "accepted are SWE-agent trajectories, OpenAI-style messages (JSON or JSON Lines) and Holdfast exports, "
    f"in UTF-8, up to {MAX_BYTES // 1024**2} MiB and {MAX_DEPTH} levels deep"
)

Json = dict[str, Any]
Step = dict[str, Any]

HISTORY, TRAJECTORY, MESSAGES = "swe-agent:history", "swe-agent:trajectory", "openai-messages"
"""What a step's `source` says: the part of the file that it was made from."""

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "agent",
    "tool": "tool",
    "function": "tool",
}
"""How a message's role reads in a step; any other reads as `system`."""

NAMES = (
    ("instance_id",),
    ("name",),
    ("title",),
    ("info", "instance_id"),
    ("replay_config", "agent", "name"),
    ("environment",),
    ("id",),
)
NAMELESS = {"main", "swe_main"}
"""What SWE-agent calls every agent and environment that nobody named."""

MODELS = (
    ("model",),
    ("replay_config", "agent", "model", "name"),
    ("info", "config", "model", "model_name"),
    ("info", "model"),
)


class TraceError(ValueError):
    """A file is not a trace that can be taken whole: one sentence with the file, the fault and what is accepted."""

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(f"{_printable(str(path))} {fault}; {ACCEPTED}.")


@dataclass(frozen=True)
class Trace:
    """One agent to be: its steps, oldest first, as an append takes them (no id, seq or parent)."""

    name: str
    model: str | None
    labels: dict[str, str]
    steps: list[Step]


@dataclass(frozen=True)
class Snapshot:
    """A Holdfast export, decoded and otherwise as it was: name and labels are its own."""

    export: Json


def read(path: Path) -> list[Trace | Snapshot]:
    """Everything that the file holds, in its order; raises TraceError and yields nothing when any part is broken."""
    try:
        documents = _documents(_decode_file(_read_bytes(path)))
        return [_understand(document, _Origin(path, len(documents), at)) for at, document in enumerate(documents, 1)]
    except _Fault as fault:
        raise TraceError(path, str(fault)) from None


class _Fault(Exception):
    """What is wrong, as the rest of a sentence that begins with the file's name."""


@dataclass(frozen=True)
class _Origin:
    """Where a document was found: the `at`-th of `count` in a file."""

    path: Path
    count: int
    at: int

    def labels(self, source: str) -> dict[str, str]:
        return {"source": source, "file": _as_unicode(self.path.name)}

    def name(self) -> str:
        stem = _as_unicode(self.path.stem.removesuffix(".traj"))
        return stem if self.count == 1 else f"{stem}-{self.at}"

    def place(self, where: str) -> str:
        return where if self.count == 1 else f"document {self.at}, {where}"


# From bytes to JSON values, strictly


def _read_bytes(path: Path) -> bytes:
    try:
        facts = path.stat()
        if S_ISDIR(facts.st_mode):
            raise _Fault("is a directory")
        if not S_ISREG(facts.st_mode):
            raise _Fault("is not a regular file")
        if facts.st_size > MAX_BYTES:
            raise _Fault(f"is too large ({facts.st_size} bytes)")
        with path.open("rb") as file:
            return file.read()
    except FileNotFoundError:
        raise _Fault("does not exist") from None
    except (OSError, ValueError) as error:
        raise _Fault(f"cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _decode_file(content: bytes) -> Any:
    """The file's one JSON value, or the list of its lines' values when it is JSON Lines."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Fault(f"is not UTF-8 (at byte {error.start})") from None
    if not text.strip():
        raise _Fault("is empty")
    try:
        return _decode(text)
    except json.JSONDecodeError as error:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) > 1 and _is_json(lines[0][1]):
            return [_decode_line(number, line) for number, line in lines]
        raise _Fault(_syntax(error, error.lineno)) from None


def _decode_line(number: int, line: str) -> Any:
    try:
        return _decode(line)
    except json.JSONDecodeError as error:
        raise _Fault(_syntax(error, number)) from None
    except _Fault as fault:
        raise _Fault(f"line {number} {fault}") from None


def _syntax(error: json.JSONDecodeError, line: int) -> str:
    return f"is not JSON: {error.msg.lower()} at line {line}, column {error.colno}"


def _is_json(text: str) -> bool:
    try:
        _decode(text)
    except json.JSONDecodeError:
        return False
    except _Fault:
        pass
    return True


def _decode(text: str) -> Any:
    """The JSON value, or JSONDecodeError, or a _Fault where the value could not be kept as it stands."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise _Fault(f"is nested deeper than {MAX_DEPTH} levels") from None


def _object(pairs: list[tuple[str, Any]]) -> Json:
    known = dict(pairs)
    if len(known) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Fault(f"holds the key {_quoted(twice)} twice in one object")
    return known


def _integer(digits: str) -> int:
    if len(digits) > len(str(-(2**63))) or not -(2**63) <= int(digits) < 2**63:
        raise _Fault(f"holds an integer beyond 64 bits ({digits[:24]})")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _Fault(f"holds a number that is too large ({digits[:24]})")
    return value


def _constant(name: str) -> float:
    raise _Fault(f"holds {name}, which is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant
)


def _check(value: Any, at: str, levels: int) -> None:
    """Raise a _Fault when the value is nested too deep or holds text that is not Unicode, or a NUL in a key."""
    if isinstance(value, str):
        _check_text(value, at)
    elif isinstance(value, Mapping | list):
        if not levels:
            raise _Fault(f"is nested deeper than {MAX_DEPTH} levels at {_printable(at[:80])}")
        for key, child in value.items() if isinstance(value, Mapping) else enumerate(value):
            if isinstance(key, str):
                _check_text(key, f"a key of {at}")
                if "\0" in key:
                    raise _Fault(f"holds a key with NUL at {_printable(at[:80])}")
            _check(child, f"{at}.{key}" if isinstance(key, str) else f"{at}[{key}]", levels - 1)


def _check_text(text: str, at: str) -> None:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise _Fault(f"holds half a surrogate pair, which is no text, at {_printable(at[:80])}")


# From JSON values to documents


def _documents(value: Any) -> list[Any]:
    """The traces in a file, each as an object; messages that stand alone are put under `messages`."""
    if _is_message(value):
        return [{"messages": [value]}]
    if not isinstance(value, list):
        return [value]
    if not value:
        raise _Fault("holds an empty list")
    return [{"messages": value}] if any(map(_is_message, value)) else value


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value and not _KINDS.keys() & value.keys()


def _understand(document: Any, origin: _Origin) -> Trace | Snapshot:
    if not isinstance(document, dict):
        raise _Fault(f"is JSON but no trace: {origin.place('the top level')} is {_kind(document)}")
    _check(document, origin.place("the top level"), MAX_DEPTH)
    for mark, take in _KINDS.items():
        if mark in document:
            return take(document, origin)
    names = ", ".join(_quoted(name) for name in list(document)[:5]) or "nothing"
    raise _Fault(f"is JSON but no trace: {origin.place('the top level')} holds {names}")


def _snapshot(document: Json, origin: _Origin) -> Snapshot:
    version = document["holdfast"]
    if type(version) is not int or version != 1:
        shown = _quoted(json.dumps(version))
        raise _Fault(f"is an export of format {shown}, of which only 1 is known, at {origin.place('holdfast')}")
    return Snapshot(document)


def _messages(document: Json, origin: _Origin) -> Trace:
    messages = _records(document, "messages", origin)
    rest = {name: value for name, value in document.items() if name != "messages"}
    return _trace("openai-messages", rest, _message_steps(messages, "messages", MESSAGES, origin), origin)


def _swe_agent(document: Json, origin: _Origin) -> Trace:
    history = _records(document, "history", origin)
    entries = _records(document, "trajectory", origin)
    rest = {name: value for name, value in document.items() if name not in ("history", "trajectory")}
    steps = _message_steps(history, "history", HISTORY, origin)
    return _trace("swe-agent", rest, list(_interleaved(history, steps, entries)), origin)


_KINDS: dict[str, Callable[[Json, _Origin], Trace | Snapshot]] = {
    "holdfast": _snapshot,
    "history": _swe_agent,
    "trajectory": _swe_agent,
    "messages": _messages,
}
"""The key by which each kind of content is known, the surest first."""


def _records(document: Json, name: str, origin: _Origin) -> list[Json]:
    records = document.get(name, [])
    if not isinstance(records, list):
        raise _Fault(f"holds {_kind(records)} instead of a list at {origin.place(name)}")
    for at, record in enumerate(records):
        if not isinstance(record, dict):
            raise _Fault(f"holds {_kind(record)} instead of an object at {origin.place(f'{name}[{at}]')}")
    return records


def _trace(source: str, rest: Json, steps: list[Step], origin: _Origin) -> Trace:
    if not steps:
        raise _Fault(f"holds no messages{'' if origin.count == 1 else f' in document {origin.at}'}")
    if rest:
        steps[0] = {**steps[0], "data": {**steps[0].get("data", {}), "file": rest}}
    for at, step in enumerate(steps):
        _check(step, origin.place(f"what becomes step {at + 1}"), STEP_DEPTH)
    return Trace(
        name=_first(rest, NAMES, NAMELESS) or origin.name(),
        model=_first(rest, MODELS, set()),
        labels=origin.labels(source),
        steps=steps,
    )


def _first(document: Json, paths: Sequence[tuple[str, ...]], meaningless: set[str]) -> str | None:
    """The first text that stands at one of the paths and means something."""
    for path in paths:
        value: Any = document
        for name in path:
            value = _unpacked(value).get(name)
        if isinstance(value, str) and value.strip() and value not in meaningless:
            return value
    return None


def _unpacked(value: Any) -> Json:
    """The object itself, or the one that a text holds as JSON (newer SWE-agents write `replay_config` so)."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = _decode(value)
        except (json.JSONDecodeError, _Fault):
            return {}
    return value if isinstance(value, dict) else {}


# From messages to steps


def _message_steps(messages: list[Json], name: str, source: str, origin: _Origin) -> list[Step]:
    """One step a message, in order."""
    calls = _LegacyCalls()
    steps = []
    for at, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise _Fault(f"holds a message without a role at {origin.place(f'{name}[{at}]')}")
        steps.append(_Message(message, at, calls).step(source))
    return steps


@dataclass
class _LegacyCalls:
    """Ids for `function_call`, which has none: the function's next answer is paired with its last call."""

    open: dict[str, str] = field(default_factory=dict)

    def call(self, name: str, at: int) -> str:
        self.open[name] = f"call-{at}"
        return self.open[name]

    def answer(self, name: Any) -> str | None:
        return self.open.pop(name, None) if isinstance(name, str) else None


class _Message:
    """One message on its way to a step: `rest` is what the step does not say yet."""

    def __init__(self, message: Json, at: int, calls: _LegacyCalls) -> None:
        self.rest = dict(message)
        self.at = at
        self.calls = calls

    def step(self, source: str) -> Step:
        step: Step = {"role": self._role(), "source": source}
        self._take_calls(step)
        if step["role"] == "tool":
            self._take_results(step)
        self._take_content(step)
        if isinstance(self.rest.get("usage"), dict):
            step["usage"] = self.rest.pop("usage")
        created_at = self.rest.get("created_at", self.rest.get("timestamp"))
        if _is_instant(created_at):
            step["created_at"] = created_at
        if self.rest:
            step["data"] = {"message": self.rest}
        return step

    def _role(self) -> str:
        role = ROLES.get(self.rest["role"], "system")
        if role == self.rest["role"]:
            del self.rest["role"]
        return role

    def _take_content(self, step: Step) -> None:
        """Text goes to the step; parts stay where they are, and the step gets the text in them."""
        content = self.rest.get("content")
        if "tool_results" in step:
            return
        if isinstance(content, str):
            step["content"] = self.rest.pop("content")
        elif isinstance(content, list) and (text := _text(content)):
            step["content"] = text

    def _take_calls(self, step: Step) -> None:
        """The originals stay: arguments are a text there, and an input need not say all that they do."""
        calls = self.rest.get("tool_calls")
        legacy = self.rest.get("function_call")
        if isinstance(calls, list):
            found = [_tool_call(call, f"call-{self.at}-{n}") for n, call in enumerate(calls)]
            step["tool_calls"] = [call for call in found if call]
        elif isinstance(legacy, dict) and (call := _function(legacy)):
            step["tool_calls"] = [{"id": self.calls.call(call["name"], self.at), **call}]

    def _take_results(self, step: Step) -> None:
        ids = self._answered_ids()
        if not ids:
            return
        content = self.rest.get("content")
        output = _text(content) if isinstance(content, list) else content
        step["tool_results"] = [{"id": answered, "output": output} for answered in ids]
        if content is not None and output == content:
            del self.rest["content"]

    def _answered_ids(self) -> list[str]:
        ids = self.rest.get("tool_call_ids", [self.rest.get("tool_call_id")])
        if isinstance(ids, list) and all(isinstance(answered, str) for answered in ids):
            return ids
        legacy = self.calls.answer(self.rest.get("name"))
        return [legacy] if legacy else []


def _tool_call(call: Any, spare_id: str) -> Json | None:
    if not isinstance(call, dict):
        return None
    function = _function(call.get("function")) or _function(call.get("custom"))
    named = call.get("id")
    return function and {"id": named if isinstance(named, str) else spare_id, **function}


def _function(function: Any) -> Json | None:
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return None
    given = function.get("arguments", function.get("input"))
    return {"name": function["name"], "input": _arguments(given)}


def _arguments(given: Any) -> Any:
    """What the arguments say as JSON, or themselves when they are not JSON that can be kept."""
    if not isinstance(given, str):
        return given
    try:
        value = _decode(given)
        _check(value, "arguments", INPUT_DEPTH)
    except (json.JSONDecodeError, _Fault):
        return given
    return value


def _text(content: Any) -> str:
    """The text of a message's content; that of several parts is joined by line ends."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return "\n".join(text for text in texts if isinstance(text, str))


def _is_instant(value: Any) -> bool:
    if not isinstance(value, str) or len(value) < len("2000-01-01T00:00:00Z"):
        return False
    try:
        instant = datetime.fromisoformat(value)
        return instant.tzinfo is not None and instant.astimezone(UTC) is not None
    except (ValueError, OverflowError):
        return False


# What SWE-agent's trajectory adds to its history


def _interleaved(history: list[Json], steps: list[Step], entries: list[Json]) -> Iterator[Step]:
    """The history's steps with their entries of the trajectory; an entry without a message is a step between them.

    An observation that no message follows is a `tool` step of its own; one that is told by a message stays, as it was
    before the message's template was laid around it, in `data.trajectory`.
    """
    owner = _matched(history, entries)
    told = 0
    for at, step in enumerate(steps):
        if at not in owner:
            yield step
            continue
        for entry in entries[told : owner[at]]:
            yield from _entry_steps(_entry_step(entry), entry)
        told = owner[at] + 1
        yield from _entry_steps(step, entries[owner[at]], answered=_is_answered(history, at))
    for entry in entries[told:]:
        yield from _entry_steps(_entry_step(entry), entry)


def _entry_step(entry: Json) -> Step:
    """The step of an entry that no message tells."""
    said = (entry.get(name) for name in ("response", "thought"))
    text = next((text for text in said if isinstance(text, str) and text.strip()), None)
    return {"role": "agent", "source": TRAJECTORY, **({} if text is None else {"content": text})}


def _entry_steps(step: Step, entry: Json, *, answered: bool = False) -> Iterator[Step]:
    """The agent's step with its entry, then the entry's observation unless a message answers the step."""
    rest = dict(entry)
    for sent in ("messages", "query"):
        if isinstance(rest.get(sent), list):
            step = {**step, "input_messages": rest.pop(sent)}
            break
    yield {**step, "data": {**step.get("data", {}), "trajectory": rest}}
    observation = entry.get("observation")
    if answered or not isinstance(observation, str) or not observation.strip():
        return
    results = [{"id": call["id"], "output": observation} for call in step.get("tool_calls", [])]
    yield {"role": "tool", "source": TRAJECTORY, **({"tool_results": results} if results else {"content": observation})}


def _is_answered(history: list[Json], at: int) -> bool:
    return at + 1 < len(history) and history[at + 1]["role"] != "assistant"


def _matched(history: list[Json], entries: list[Json]) -> dict[int, int]:
    """Which entry of the trajectory each message of the agent's own belongs to, by place in both lists.

    Both keep their order. Response and action together decide; between two such matches the response alone does,
    and between those the action. What is blank on both sides, and demonstrations, match nothing.
    """
    own = [at for at, message in enumerate(history) if message["role"] == "assistant" and not message.get("is_demo")]
    keys: list[tuple[list[object], list[object]]] = []
    for parts in (("response", "action"), ("response",), ("action",)):
        said = [_key({**history[at], "response": _text(history[at].get("content"))}, parts) for at in own]
        keys.append(([_key(entry, parts) for entry in entries], said))
    return {own[b]: a for a, b in _aligned(range(len(entries)), range(len(own)), keys)}


def _key(record: Json, parts: tuple[str, ...]) -> object:
    values = tuple(value.strip() if isinstance(value := record.get(part), str) else "" for part in parts)
    return values if any(values) else object()


def _aligned(
    left: Sequence[int], right: Sequence[int], keys: list[tuple[list[object], list[object]]]
) -> Iterator[tuple[int, int]]:
    """Pairs of the left and the right whose first keys are equal, in order; the gaps between by the next keys."""
    if not keys or not left or not right:
        return
    (left_keys, right_keys), *finer = keys
    # Setting frequent keys aside keeps huge gaps from taking quadratic time, and matches less.
    hasty = len(left) * len(right) > EXACT_PAIRS
    matcher = SequenceMatcher(None, [left_keys[a] for a in left], [right_keys[b] for b in right], autojunk=hasty)
    from_left = from_right = 0
    for a, b, size in matcher.get_matching_blocks():
        yield from _aligned(left[from_left:a], right[from_right:b], finer)
        yield from zip(left[a : a + size], right[b : b + size], strict=True)
        from_left, from_right = a + size, b + size


# Words for people


def _kind(value: Any) -> str:
    kinds = {str: "a text", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds.get(type(value), "null")


def _quoted(text: str) -> str:
    return f"'{_printable(text[:40])}'"


def _printable(text: str) -> str:
    """The text on one line, with a ? for each control character."""
    return "".join(character if character.isprintable() else "?" for character in _as_unicode(text))


def _as_unicode(text: str) -> str:
    """The text with a ? for each byte of a file name, or half of a pair, that is no character."""
    return text.encode("utf-8", "replace").decode("utf-8")
