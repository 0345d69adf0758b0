"""The house's lints catch what they are for, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from scripts.lints import violations

Found = Callable[[str, str], list[str]]


@pytest.fixture
def found(tmp_path: Path) -> Found:
    """The texts of the violations in a project of one file."""

    def check(path: str, code: str) -> list[str]:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(code))
        return [str(violation) for violation in violations(tmp_path)]

    return check


@pytest.mark.parametrize(
    "write",
    [
        "await mongo.agents.update_one({'_id': scope.key}, change)",
        "await self._mongo.agents.insert_one(document)",
        "await agents.insert_many(documents)",
        "await agents_raw.delete_one({'_id': scope.key})",
        "await database['agents'].bulk_write(writes)",
        "await database.get_collection('agents').find_one_and_update({'_id': scope.key}, change)",
        "await mongo.agents.with_options(codec_options=RAW).delete_many({'tenant': scope.tenant})",
    ],
)
def test_agents_are_written_only_in_store(found: Found, write: str) -> None:
    assert any("only app/store.py" in text for text in found("app/runners.py", write))


def test_agents_written_through_a_local_name_are_seen(found: Found) -> None:
    code = """
    raw = mongo.agents.with_options(codec_options=RAW)
    raw.insert_one(document)
    """
    assert found("app/runners.py", code) == ["app/runners.py:3: insert_one writes agents: only app/store.py does"]


def test_store_writes_agents(found: Found) -> None:
    assert found("app/store.py", "await mongo.agents.insert_one(document)") == []


def test_other_collections_are_written_anywhere(found: Found) -> None:
    assert found("app/tenancy.py", "await mongo.keys.insert_one(document)") == []


@pytest.mark.parametrize(
    "call",
    [
        "find({'state': 'idle'})",
        "find_one({'_id': key})",
        "find_raw_batches({})",
        "aggregate([])",
        "count_documents({})",
        "distinct('tenant')",
        "update_one({}, change)",
        "update_many({}, change)",
        "delete_many({})",
        "find_one_and_delete({})",
    ],
)
def test_a_query_without_a_scope_is_refused(found: Found, call: str) -> None:
    assert any("without a scope" in text for text in found("app/memory.py", f"episodes.{call}"))


@pytest.mark.parametrize(
    "code",
    [
        "episodes.find_one({'tenant': scope.tenant})",
        "episodes.find_one(filter_of(request.scope))",
        "episodes.find_one(filter=scope.filter)",
        "async def load(scope, key):\n    return await episodes.find_one(wanted)",
        "async def load(*, scope):\n    async def read():\n        return await episodes.find_one(wanted)",
        "# unscoped: the latch is the whole service's\nepisodes.find_one({'_id': 1})",
        "episodes.find_one({'_id': 1})  # unscoped: the id begins with the tenant",
        "text.find('needle')",
        "find({'not': 'a method'})",
    ],
)
def test_a_query_with_a_scope_or_a_reason_passes(found: Found, code: str) -> None:
    assert found("app/memory.py", code) == []


def test_an_excuse_needs_a_reason_and_stands_next_to_its_query(found: Found) -> None:
    code = """
    episodes.find_one({'_id': 1})  # unscoped:
    # unscoped: too far away

    episodes.find_one({'_id': 2})
    """
    assert [text.split(":")[1] for text in found("app/memory.py", code)] == ["2", "5"]


@pytest.mark.parametrize(
    "code",
    [
        "async def f(agent):\n    await agent.save()",
        "async def f(agent):\n    await agent.save_changes(session=session)",
        "async def f(agent):\n    await agent.replace()",
        "async def f(agent):\n    agent.replace(ignore_revision=True)",
        "async def f(agent):\n    await agent.replace(session)",
        "async def f(scope):\n    await keys.replace_one({}, document)",
        "async def f(scope):\n    await keys.find_one_and_replace({}, document)",
        "writes = [ReplaceOne({}, document)]",
    ],
)
@pytest.mark.parametrize("path", ["app/agents.py", "models/agent.py", "app/store.py"])
def test_whole_documents_are_never_written(found: Found, path: str, code: str) -> None:
    assert any("writes a whole document" in text for text in found(path, code))


@pytest.mark.parametrize(
    "code",
    [
        "text.replace('a', 'b')",
        "now.replace(microsecond=0)",
        "path.replace(target)",
        "replace(state, wanted='stopped')",
        "dataclasses.replace(state, wanted='stopped')",
    ],
)
def test_replacing_other_things_than_documents_is_fine(found: Found, code: str) -> None:
    assert found("app/agents.py", code) == []


@pytest.mark.parametrize("path", ["app/utils.py", "app/common/ids.py", "models/base.py", "tests/step_helper.py"])
def test_modules_with_empty_names_are_refused(found: Found, path: str) -> None:
    assert any("tells nothing" in text for text in found(path, ""))


@pytest.mark.parametrize("name", ["AgentManager", "StepService", "Util", "HTTPHelpers", "BaseAgent", "_Common"])
def test_classes_with_empty_names_are_refused(found: Found, name: str) -> None:
    assert any("tells nothing" in text for text in found("app/agents.py", f"class {name}: ..."))


@pytest.mark.parametrize("name", ["DatabaseProblem", "Baseline", "Commonality", "Managed", "BaselineReport"])
def test_words_that_only_begin_alike_are_fine(found: Found, name: str) -> None:
    assert found("app/agents.py", f"class {name}: ...") == []
