"""Trace files become steps: whole, in order and unaltered, or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import traces
from app.traces import HISTORY, Snapshot, Trace, TraceError, read
from models.step import StepInput

Json = dict[str, Any]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "fix-the-clock.traj.json"
REAL_TRACES = os.environ.get("HOLDFAST_TRACES")


def said(role: str, content: str, **fields: Any) -> Json:
    return {"role": role, "content": content, **fields}


def entry(action: str, observation: str, response: str, **fields: Any) -> Json:
    return {"action": action, "observation": observation, "response": response, "thought": response, **fields}


def called(name: str, arguments: str, call: str = "call_1") -> Json:
    return {"id": call, "type": "function", "function": {"name": name, "arguments": arguments}}


def text_vintage() -> Json:
    """As SWE-agent wrote before tools: actions in the text, the state as JSON text, no message for the last answer."""
    return {
        "environment": "swe_main",
        "trajectory": [
            entry("ls\n", "clock.py", "I look around.\n```\nls\n```", state='{"open_file": "n/a"}'),
            entry("submit\n", "handed in", "Done.\n```\nsubmit\n```", state='{"open_file": "clock.py"}'),
        ],
        "history": [
            said("system", "You repair programs.", agent="primary"),
            said("user", "The clock is wrong.", agent="primary"),
            said("assistant", "I look around.\n```\nls\n```", thought="I look.", action="ls\n", agent="primary"),
            said("user", "clock.py\n(Open file: n/a)", agent="primary"),
            said("assistant", "Done.\n```\nsubmit\n```", thought="Done.", action="submit\n", agent="primary"),
        ],
        "info": {"exit_status": "submitted", "model_stats": {"total_cost": 0.25, "api_calls": 2}},
    }


def tool_vintage() -> Json:
    """As it wrote with tools: calls, ids, the state as an object, how it was configured."""
    return {
        "environment": "main",
        "trajectory": [
            entry("ls", "clock.py", "I look.", execution_time=0.125, state={"open_file": "", "working_dir": "/shop"}),
            entry("edit 5", "changed", "I edit.", execution_time=0.5, state={"open_file": "clock.py"}),
        ],
        "history": [
            said("system", "You repair programs.", message_type="system_prompt", agent="main"),
            said("user", "See how it is done.", message_type="demonstration", is_demo=True),
            said("assistant", "I look.", thought="I look.", action="ls", is_demo=True),
            said("user", "The clock is wrong.", message_type="observation", agent="main"),
            said(
                "assistant", "I look.", thought="I look.", action="ls", tool_calls=[called("bash", '{"command":"ls"}')]
            ),
            said("tool", "clock.py\nbash-$", message_type="observation", tool_call_ids=["call_1"]),
            said("assistant", "I edit.", action="edit 5", tool_calls=[called("edit", '{ "line": 5, ', "call_2")]),
            said("tool", "changed\nbash-$", message_type="observation", tool_call_ids=["call_2"]),
        ],
        "info": {"submission": "\r\ndiff --git", "edited_files30": ""},
        "replay_config": {
            "agent": {"name": "clock-17", "model": {"name": "mender-1", "temperature": 0.0}},
            "env": None,
        },
    }


def query_vintage() -> Json:
    """As it writes with every request repeated: what was sent stands in each entry, the configuration is a text."""
    document = tool_vintage()
    for at, turn in enumerate(document["trajectory"]):
        turn["messages"] = document["history"][: 4 + 2 * at]
    document["replay_config"] = json.dumps(document["replay_config"])
    document["history"][0]["content"] = [{"type": "text", "text": "You repair.", "cache_control": {"type": "brief"}}]
    return document


VINTAGES = [text_vintage(), tool_vintage(), query_vintage()]


def rebuilt(trace: Trace) -> Json:
    """The SWE-agent file that the steps were made from, told from the steps alone."""
    history = [message_of(step) for step in trace.steps if step["source"] == HISTORY]
    entries = [entry_of(step) for step in trace.steps if "trajectory" in step.get("data", {})]
    return {"history": history, "trajectory": entries, **trace.steps[0]["data"].get("file", {})}


def message_of(step: Json) -> Json:
    message = {"role": step["role"], **step.get("data", {}).get("message", {})}
    outputs = [result["output"] for result in step.get("tool_results", []) if result["output"] is not None]
    for content in [step["content"]] if "content" in step else outputs:
        message.setdefault("content", content)
    return message | {name: step[name] for name in ("usage",) if name in step}


def entry_of(step: Json) -> Json:
    sent = {"messages": step["input_messages"]} if "input_messages" in step else {}
    return {**step["data"]["trajectory"], **sent}


def leaves(value: Any) -> Iterator[str]:
    """Each value in a value, as JSON text."""
    if isinstance(value, dict | list) and value:
        for child in value.values() if isinstance(value, dict) else value:
            yield from leaves(child)
    else:
        yield json.dumps(value)


def save(folder: Path, content: Any, name: str = "trace.json") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def only(folder: Path, content: Any, name: str = "trace.json") -> Trace:
    (trace,) = read(save(folder, content, name))
    assert isinstance(trace, Trace)
    return trace


def refusal(path: Path) -> str:
    with pytest.raises(TraceError) as refused:
        read(path)
    message = str(refused.value)
    assert path.name in message
    assert "accepted are SWE-agent trajectories, OpenAI-style messages" in message
    assert "\n" not in message
    return message


class TestSweAgent:
    """Trajectories of all vintages."""

    @pytest.mark.parametrize("document", VINTAGES, ids=["text", "tools", "queries"])
    def test_the_file_can_be_rebuilt_from_the_steps(self, document: Json, tmp_path: Path) -> None:
        """The steps hold all that the file held, to the letter and in order."""
        assert rebuilt(only(tmp_path, document)) == document

    @pytest.mark.parametrize("document", VINTAGES, ids=["text", "tools", "queries"])
    def test_each_value_of_the_file_stands_in_a_step(self, document: Json, tmp_path: Path) -> None:
        """Text, number or null: whatever a file says can be found in the steps without knowing the mapping."""
        assert set(leaves(document)) <= set(leaves(only(tmp_path, document).steps))

    @pytest.mark.skipif(not REAL_TRACES, reason="HOLDFAST_TRACES names no folder of trajectories")
    def test_real_files_can_be_rebuilt(self) -> None:
        """What SWE-agent itself has written comes through whole, each entry at a message of its own."""
        files = sorted(Path(REAL_TRACES or "").glob("*.traj"))
        assert files
        for path in files:
            (trace,) = read(path)
            assert isinstance(trace, Trace)
            document = json.loads(path.read_bytes())
            assert rebuilt(trace) == document
            assert set(leaves(document)) <= set(leaves(trace.steps))
            owned = [step for step in trace.steps if "trajectory" in step.get("data", {})]
            assert all(step["source"] == HISTORY for step in owned)

    @pytest.mark.parametrize("document", VINTAGES, ids=["text", "tools", "queries"])
    def test_the_steps_are_what_an_append_takes(self, document: Json, tmp_path: Path) -> None:
        """Each step passes the check of the service's own body, field by field."""
        for step in only(tmp_path, document).steps:
            assert StepInput.model_validate(step).given() == step

    def test_messages_become_steps_of_their_role(self, tmp_path: Path) -> None:
        """System, user, assistant and tool messages read as system, user, agent and tool steps, in order."""
        roles = [step["role"] for step in only(tmp_path, tool_vintage()).steps]
        assert roles == ["system", "user", "agent", "user", "agent", "tool", "agent", "tool"]

    def test_tool_calls_carry_parsed_input_and_results_their_ids(self, tmp_path: Path) -> None:
        """Arguments that are JSON are parsed, others stay text; the answer names the call that it answers."""
        steps = only(tmp_path, tool_vintage()).steps
        assert steps[4]["tool_calls"] == [{"id": "call_1", "name": "bash", "input": {"command": "ls"}}]
        assert steps[5]["tool_results"] == [{"id": "call_1", "output": "clock.py\nbash-$"}]
        assert steps[6]["tool_calls"] == [{"id": "call_2", "name": "edit", "input": '{ "line": 5, '}]

    def test_an_entry_belongs_to_the_agents_own_message_and_never_to_a_demonstration(self, tmp_path: Path) -> None:
        """A demonstration that says the very same does not take the entry away."""
        steps = only(tmp_path, tool_vintage()).steps
        assert "trajectory" not in steps[2]["data"]
        assert steps[2]["data"]["message"]["is_demo"] is True
        assert steps[4]["data"]["trajectory"]["execution_time"] == 0.125

    def test_what_was_sent_becomes_input_messages(self, tmp_path: Path) -> None:
        """An entry's `messages` are the input of the step, not its data; `query` is their newer name."""
        document = query_vintage()
        step = only(tmp_path, document).steps[4]
        assert step["input_messages"] == document["history"][:4]
        assert "messages" not in step["data"]["trajectory"]
        newer = {"trajectory": [entry("ls", "", "I look.", query=[said("user", "Hello")])]}
        assert only(tmp_path, newer).steps[0]["input_messages"] == [said("user", "Hello")]

    def test_an_answer_without_a_message_becomes_a_step(self, tmp_path: Path) -> None:
        """The last observation of an older file stands in no message, and yet it is the last step."""
        last = only(tmp_path, text_vintage()).steps[-1]
        assert last == {"role": "tool", "source": "swe-agent:trajectory", "content": "handed in"}

    def test_an_answer_without_a_message_answers_the_calls_of_its_step(self, tmp_path: Path) -> None:
        """When the file ends at a tool call, the observation of its entry is the result of that call."""
        document = tool_vintage()
        del document["history"][-1]
        last = only(tmp_path, document).steps[-1]
        assert last["tool_results"] == [{"id": "call_2", "output": "changed"}]

    def test_a_trajectory_without_history_becomes_steps(self, tmp_path: Path) -> None:
        """Entries alone are enough: each is a step of the agent and one of the tool that answered."""
        document = {"trajectory": text_vintage()["trajectory"]}
        steps = only(tmp_path, document).steps
        assert [step["role"] for step in steps] == ["agent", "tool", "agent", "tool"]
        assert [step["content"] for step in steps[:2]] == ["I look around.\n```\nls\n```", "clock.py"]
        assert rebuilt(only(tmp_path, document)) == {"history": [], **document}

    def test_an_entry_without_a_message_stands_between_its_neighbours(self, tmp_path: Path) -> None:
        """A failed attempt that the history left out is put where it happened."""
        document = tool_vintage()
        document["trajectory"].insert(1, entry("edti 5", "no such command", "I edti."))
        steps = only(tmp_path, document).steps
        assert [step["role"] for step in steps[4:]] == ["agent", "tool", "agent", "tool", "agent", "tool"]
        assert [step.get("content") for step in steps[6:9]] == ["I edti.", "no such command", "I edit."]
        assert rebuilt(only(tmp_path, document)) == document

    def test_messages_with_the_same_words_are_matched_in_order(self, tmp_path: Path) -> None:
        """Blank responses are told apart by their actions, and equal ones by their order."""
        actions = ["ls", "ls", "cat a", "ls"]
        document = {
            "history": [said("assistant", "", action=action) for action in actions],
            "trajectory": [entry(action, "", "", state=str(at)) for at, action in enumerate(actions)],
        }
        steps = only(tmp_path, document).steps
        assert [step["data"]["trajectory"]["state"] for step in steps] == ["0", "1", "2", "3"]

    def test_a_long_run_of_few_words_is_matched_around_a_gap(self, tmp_path: Path) -> None:
        """One failed attempt at the start of hundreds of like turns costs that one entry its message, and no other."""
        history = [said("assistant", "", action=f"try {at % 3}") for at in range(400)]
        attempts = [entry("tyr 0", "", ""), *(entry(message["action"], "", "") for message in history)]
        steps = only(tmp_path, {"history": history, "trajectory": attempts}).steps
        assert [step["source"] == HISTORY for step in steps] == [False, *[True] * 400]
        assert all("trajectory" in step["data"] for step in steps)

    def test_a_response_or_an_action_alone_is_enough_to_match(self, tmp_path: Path) -> None:
        """A message that lost its action, or whose text was changed, still gets its entry."""
        document = {
            "history": [said("assistant", "I look."), said("assistant", "(shortened)", action="edit 5")],
            "trajectory": [entry("ls", "", "I look."), entry("edit 5", "", "I edit, and at length.")],
        }
        steps = only(tmp_path, document).steps
        assert [step["data"]["trajectory"]["action"] for step in steps] == ["ls", "edit 5"]

    def test_name_and_model_come_from_the_content(self, tmp_path: Path) -> None:
        """What the file calls its agent is the name; the labels say where it came from."""
        for document in (tool_vintage(), query_vintage()):
            trace = only(tmp_path, document, "run-7.traj")
            assert (trace.name, trace.model) == ("clock-17", "mender-1")
            assert trace.labels == {"source": "swe-agent", "file": "run-7.traj"}

    def test_a_name_that_every_file_has_is_none(self, tmp_path: Path) -> None:
        """SWE-agent's own default names tell nothing apart: then the file's name does."""
        assert only(tmp_path, text_vintage(), "run-7.traj").name == "run-7"
        assert only(tmp_path, {**text_vintage(), "environment": "shop"}, "run-7.traj").name == "shop"

    def test_the_example_is_a_whole_trace(self) -> None:
        """The trace that the project ships tells a story of tool calls and answers."""
        (trace,) = read(EXAMPLE)
        assert isinstance(trace, Trace)
        assert rebuilt(trace) == json.loads(EXAMPLE.read_bytes())
        assert trace.name == "fix-the-clock"
        calls = [call["id"] for step in trace.steps for call in step.get("tool_calls", [])]
        assert calls == [answer["id"] for step in trace.steps for answer in step.get("tool_results", [])]
        assert len(calls) > 4


class TestOpenAiMessages:
    """Lists of chat messages."""

    MESSAGES = (
        said("developer", "Be brief."),
        said("user", "What time is it?", name="ada"),
        {"role": "assistant", "content": None, "tool_calls": [called("clock", '{"zone": "UTC"}')], "refusal": None},
        {"role": "tool", "content": "12:30", "tool_call_id": "call_1"},
        said("assistant", "Half past twelve.", usage={"total_tokens": 31}, annotations=[]),
    )

    @pytest.mark.parametrize("shape", ["list", "object", "lines"])
    def test_each_shape_gives_the_same_steps(self, shape: str, tmp_path: Path) -> None:
        """A list, an object around it and JSON Lines are one conversation."""
        lines = "\n".join(json.dumps(message) for message in self.MESSAGES)
        content = {"list": list(self.MESSAGES), "object": {"messages": self.MESSAGES}, "lines": lines.encode()}[shape]
        trace = only(tmp_path, content, "chat.jsonl")
        assert [step["role"] for step in trace.steps] == ["system", "user", "agent", "tool", "agent"]
        assert [message_of(step) for step in trace.steps] == list(self.MESSAGES)
        assert trace.labels == {"source": "openai-messages", "file": "chat.jsonl"}
        assert trace.name == "chat"

    def test_calls_results_and_usage_go_to_their_fields(self, tmp_path: Path) -> None:
        """What a step has a field for is found there."""
        steps = only(tmp_path, list(self.MESSAGES)).steps
        assert steps[2]["tool_calls"] == [{"id": "call_1", "name": "clock", "input": {"zone": "UTC"}}]
        assert "content" not in steps[2]
        assert steps[3]["tool_results"] == [{"id": "call_1", "output": "12:30"}]
        assert steps[4]["usage"] == {"total_tokens": 31}

    def test_what_stands_beside_the_messages_is_kept_on_the_first_step(self, tmp_path: Path) -> None:
        """The model names the agent's model; the rest of the object is the first step's `data.file`."""
        trace = only(tmp_path, {"messages": [said("user", "Hi")], "model": "mender-1", "seed": 7, "title": "A hello"})
        assert (trace.model, trace.name) == ("mender-1", "A hello")
        assert trace.steps[0]["data"]["file"] == {"model": "mender-1", "seed": 7, "title": "A hello"}

    def test_parts_give_their_text_and_are_kept(self, tmp_path: Path) -> None:
        """Pictures have no text: the parts stay in the data, the text of the others is the content."""
        parts = [
            {"type": "text", "text": "Which"},
            {"type": "image_url", "image_url": {}},
            {"type": "text", "text": "one?"},
        ]
        (step,) = only(tmp_path, [{"role": "user", "content": parts}]).steps
        assert step["content"] == "Which\none?"
        assert step["data"]["message"]["content"] == parts

    def test_a_legacy_function_call_is_paired_with_its_answer(self, tmp_path: Path) -> None:
        """Calls without ids get one, and the next answer of that function has the same."""
        messages = [
            {"role": "assistant", "content": None, "function_call": {"name": "clock", "arguments": "{}"}},
            {"role": "function", "name": "clock", "content": "12:30"},
            {"role": "function", "name": "clock", "content": "12:31"},
        ]
        steps = only(tmp_path, messages).steps
        assert steps[0]["tool_calls"][0]["id"] == steps[1]["tool_results"][0]["id"]
        assert steps[2]["content"] == "12:31"
        assert [message_of(step) for step in steps] == messages

    @pytest.mark.parametrize(
        "arguments", ['{"n": NaN}', '{"a":1,"a":2}', '"\\ud800"', "9" * 30, "[" * 40 + "]" * 40, ""]
    )
    def test_arguments_that_cannot_be_kept_as_json_stay_text(self, arguments: str, tmp_path: Path) -> None:
        """What a model wrote is never a reason to refuse its trace, and never altered."""
        (step,) = only(tmp_path, [{"role": "assistant", "tool_calls": [called("f", arguments)]}]).steps
        assert step["tool_calls"][0]["input"] == arguments

    def test_calls_of_unknown_form_stay_in_the_data(self, tmp_path: Path) -> None:
        """A call is taken when it has a name; whatever it is, the original stays."""
        calls = [
            {"type": "custom", "id": "call_9", "custom": {"name": "grep", "input": "x"}},
            {"function": {"name": "f", "arguments": {"n": 1}}},
            "nothing known",
        ]
        (step,) = only(tmp_path, [{"role": "assistant", "tool_calls": calls}]).steps
        assert [call["input"] for call in step["tool_calls"]] == ["x", {"n": 1}]
        assert [call["id"] for call in step["tool_calls"]] == ["call_9", "call-0-1"]
        assert step["data"]["message"]["tool_calls"] == calls

    def test_unknown_roles_are_kept(self, tmp_path: Path) -> None:
        """A role that Holdfast has no word for reads as system and is still told."""
        (step,) = only(tmp_path, [said("narrator", "Night fell.")]).steps
        assert step["role"] == "system"
        assert step["data"]["message"] == {"role": "narrator"}

    @pytest.mark.parametrize(
        ("given", "taken"), [("2026-01-02T03:04:05Z", True), ("2026-01-02T03:04:05", False), (1767323045, False)]
    )
    def test_a_full_instant_is_the_steps_time(self, given: object, *, taken: bool, tmp_path: Path) -> None:
        """A time with its zone is the step's; whatever is less stays in the data only."""
        (step,) = only(tmp_path, [said("user", "Hi", created_at=given)]).steps
        assert ("created_at" in step) is taken
        assert step["data"]["message"]["created_at"] == given

    def test_lines_of_conversations_are_one_trace_each(self, tmp_path: Path) -> None:
        """A file of many conversations gives many agents, each with a name of its own."""
        lines = [{"messages": [said("user", "One")]}, {"messages": [said("user", "Two")]}]
        found = read(save(tmp_path, "\n".join(map(json.dumps, lines)).encode(), "talks.jsonl"))
        assert [trace.name for trace in found if isinstance(trace, Trace)] == ["talks-1", "talks-2"]


class TestHoldfastExports:
    """What Holdfast wrote itself."""

    EXPORT: ClassVar[Json] = {"holdfast": 1, "id": "a1", "name": "Bob", "steps": []}

    @pytest.mark.parametrize("count", [1, 2])
    def test_exports_are_handed_on_untouched(self, count: int, tmp_path: Path) -> None:
        """One object, a list or lines: each export is the decoded object."""
        exports = [self.EXPORT] * count
        lines = "\n".join(map(json.dumps, exports)).encode()
        for content in (exports, lines):
            assert read(save(tmp_path, content)) == [Snapshot(self.EXPORT)] * count

    @pytest.mark.parametrize("version", [2, 0, "1", True, None, 1.0])
    def test_another_format_version_is_refused(self, version: object, tmp_path: Path) -> None:
        """A newer Holdfast's export is not guessed at."""
        assert "of which only 1 is known" in refusal(save(tmp_path, {**self.EXPORT, "holdfast": version}))


class TestRefusals:
    """What cannot be taken whole is not taken."""

    @pytest.mark.parametrize(
        ("content", "fault"),
        [
            (b"", "is empty"),
            (b" \n\t", "is empty"),
            (b"dear diary", "is not JSON: expecting value at line 1, column 1"),
            (b'{\n "messages": [,]\n}', "is not JSON: expecting value at line 2, column 15"),
            (b'{"role":"user","content":"a"}\n{"role":', "is not JSON: expecting value at line 2, column 9"),
            (b'{"messages": []} trailing', "is not JSON: extra data at line 1, column 18"),
            (b"\xff\xfe{\x00}\x00", "is not UTF-8 (at byte 0)"),
            (b"[1, 2]", "is JSON but no trace: document 1, the top level is a number"),
            (b"null", "is JSON but no trace: the top level is null"),
            (b"[]", "holds an empty list"),
            (b'{"title": "x"}', "is JSON but no trace: the top level holds 'title'"),
            (b"{}", "is JSON but no trace: the top level holds nothing"),
            (b'{"messages": []}', "holds no messages"),
            (b'{"history": [], "trajectory": []}', "holds no messages"),
            (b'{"messages": "hello"}', "holds a text instead of a list at messages"),
            (b'{"messages": ["hello"]}', "holds a text instead of an object at messages[0]"),
            (b'{"trajectory": [null]}', "holds null instead of an object at trajectory[0]"),
            (b'[{"role": "user"}, {"content": "hi"}]', "holds a message without a role at messages[1]"),
            (b'{"messages": [{"role": 7}]}', "holds a message without a role at messages[0]"),
            (b'{"history": [{"content": "x"}]}', "holds a message without a role at history[0]"),
            (b'{"messages": [], "messages": []}', "holds the key 'messages' twice in one object"),
            (b'[{"role": "user", "n": NaN}]', "holds NaN, which is not JSON"),
            (b'[{"role": "user", "n": -Infinity}]', "holds -Infinity, which is not JSON"),
            (b'[{"role": "user", "n": 1e999}]', "holds a number that is too large (1e999)"),
            (b'[{"role": "user", "n": 9223372036854775808}]', "holds an integer beyond 64 bits (9223372036854775808)"),
            (b'[{"role": "user", "n": %s}]' % (b"9" * 9000), "holds an integer beyond 64 bits (99999"),
            (b'[{"role": "user", "a\\u0000b": 1}]', "holds a key with NUL at the top level.messages[0]"),
            (b'[{"role": "user", "content": "\\ud83d"}]', "half a surrogate pair"),
            (b'[{"role": "user", "\\udc00": 1}]', "half a surrogate pair"),
            (b'[{"role": "user", "n": %s1%s}]' % (b"[" * 33, b"]" * 33), "is nested deeper than 32 levels at "),
            (b"[" * 100_000, "is nested deeper than 32 levels"),
            (b'{"role": "user"}\n{"role": "user", "n": NaN}', "line 2 holds NaN"),
        ],
    )
    def test_a_broken_file_is_refused_with_one_sentence(self, content: bytes, fault: str, tmp_path: Path) -> None:
        """The sentence names the file, what is wrong with it and what would be accepted."""
        assert fault in refusal(save(tmp_path, content))

    def test_one_broken_trace_spoils_the_file(self, tmp_path: Path) -> None:
        """Nothing of a file is taken when a part of it cannot be."""
        documents = [tool_vintage(), {**tool_vintage(), "history": [{"content": "who says?"}]}]
        assert "document 2, history[0]" in refusal(save(tmp_path, documents))

    def test_nesting_that_no_append_could_carry_is_refused(self, tmp_path: Path) -> None:
        """What fits into the limit as a file but not as a step is refused at once and not halfway."""
        deep: Any = "bottom"
        for _ in range(29):
            deep = [deep]
        assert "what becomes step 1" in refusal(save(tmp_path, [said("user", "Hi", deep=deep)]))

    def test_the_largest_integers_and_a_mark_at_the_start_are_fine(self, tmp_path: Path) -> None:
        """The limits themselves are inside, and the byte order mark of some editors is no content."""
        numbers = [2**63 - 1, -(2**63), 0.1, 1e300]
        content = b"\xef\xbb\xbf" + json.dumps([said("user", "Hi", numbers=numbers)]).encode()
        assert only(tmp_path, content).steps[0]["data"]["message"]["numbers"] == numbers

    def test_what_is_no_readable_file_is_refused(self, tmp_path: Path) -> None:
        """Folders, missing files, pipes and closed files are told apart."""
        assert "is a directory" in refusal(tmp_path)
        assert "does not exist" in refusal(tmp_path / "nowhere.traj")
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        assert "is not a regular file" in refusal(pipe)
        loop = tmp_path / "loop"
        loop.symlink_to(loop)
        assert "cannot be read (" in refusal(loop)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_a_closed_file_is_refused(self, tmp_path: Path) -> None:
        """Without the right to read there is a sentence."""
        path = save(tmp_path, tool_vintage())
        path.chmod(0)
        assert "cannot be read (" in refusal(path)

    def test_a_file_beyond_the_limit_is_refused_unread(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The size is looked at before the content is."""
        path = tmp_path / "huge.traj"
        with path.open("wb") as file:
            file.truncate(traces.MAX_BYTES + 1)
        monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("it was opened"))
        assert f"is too large ({traces.MAX_BYTES + 1} bytes)" in refusal(path)

    def test_a_file_name_that_is_no_text_does_no_harm(self, tmp_path: Path) -> None:
        """Names are bytes to the system; labels and messages get what can be shown."""
        path = tmp_path / os.fsdecode(b"odd\xff.json")
        path.write_text(json.dumps([said("user", "Hi")]))
        (trace,) = read(path)
        assert isinstance(trace, Trace)
        assert (trace.name, trace.labels["file"]) == ("odd?", "odd?.json")
        path.write_text("")
        with pytest.raises(TraceError, match=r"odd\?\.json is empty"):
            read(path)


FREE_FIELDS = (
    *("content", "action", "tool_calls", "tool_call_id", "tool_call_ids", "function_call", "name"),
    *("usage", "created_at", "is_demo"),
)
"""Fields that the reader looks at, with whatever in them."""

scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
values = st.recursive(
    scalars | words, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=6
)
messages = st.builds(
    lambda role, known, other: {**other, **known, "role": role},
    st.sampled_from(["system", "user", "assistant", "tool", "function", "developer"]) | words,
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(FREE_FIELDS, words | values),
    ),
    st.dictionaries(words, values, max_size=2),
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "action": st.sampled_from(["ls", "submit", ""]) | words,
        "response": st.sampled_from(["I look.", ""]) | values,
        "observation": words | values,
        "thought": values,
        "state": values,
        "messages": st.lists(messages, max_size=2),
    },
)


class TestAnyFile:
    """Properties that hold for whatever somebody wrote."""

    @given(history=st.lists(messages, max_size=6), trajectory=st.lists(entries, max_size=6), info=values)
    def test_any_trajectory_can_be_rebuilt(
        self, history: list[Json], trajectory: list[Json], info: Any, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Nothing is lost, whatever fields there are and whether or not the two lists fit together."""
        document = {"history": history, "trajectory": trajectory, "info": info}
        if history or trajectory:
            trace = only(tmp_path_factory.getbasetemp(), document)
            assert all(StepInput.model_validate(step) for step in trace.steps)
            found = rebuilt(trace)
            assert json.dumps(found, sort_keys=True) == json.dumps(document, sort_keys=True)

    @given(content=st.binary(max_size=64) | values.map(lambda value: json.dumps(value).encode()))
    def test_any_bytes_are_read_or_refused(self, content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
        """There is no content that ends in anything but traces or the one error."""
        with suppress(TraceError):
            assert read(save(tmp_path_factory.getbasetemp(), content))

    @given(cut=st.integers(0, EXAMPLE.stat().st_size - 3))
    def test_a_file_cut_short_yields_nothing(self, cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
        """A download that broke off is never half a trace."""
        refusal(save(tmp_path_factory.getbasetemp(), EXAMPLE.read_bytes()[:cut]))
