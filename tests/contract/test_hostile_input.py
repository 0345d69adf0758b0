"""Whatever comes in, the answer is a problem of a known kind, never a 5xx, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient

from app.config import Settings
from tests.api.driver import Api, Handle, problem_of, serving
from tests.contract.samples import NOTHING, SAMPLES, Route, name_of, path_of, prepared

BY_ITSELF = {"beats", "changes"}
"""Collections that follow the others: the change log has an entry only of what an agent shows, too."""

JSON = {"Content-Type": "application/json"}
OPERATOR = {"$gt": ""}

TAKES_BODY = [route for route in sorted(SAMPLES) if SAMPLES[route].body is not NOTHING]
WITH_FIELDS = [route for route in TAKES_BODY if not route[1].endswith(("/workspace", "/settings"))]
"""Routes whose body has known fields; a workspace is any value, settings are any object."""

MALFORMED: dict[str, bytes] = {
    "no JSON": b"hello",
    "truncated": b'{"name": "x',
    "two values": b"{} {}",
    "trailing comma": b'{"name": "x",}',
    "single quotes": b"{'name': 'x'}",
    "byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "bad UTF-8": b'{"name": "\xff"}',
    "overlong UTF-8": b'{"name": "\xc0\xaf"}',
    "surrogate in UTF-8": b'{"name": "\xed\xa0\x80"}',
    "lone surrogate": b'{"name": "\\ud800"}',
    "lone surrogate in a key": b'{"\\udc00": 1}',
    "33 levels and more": b'{"steps":' * 40 + b"1" + b"}" * 40,
    "2 000 levels": b"[" * 2_000 + b"]" * 2_000,
    "2 000 levels, never closed": b'{"a":' * 2_000,
    "30 digits": b'{"name": ' + b"9" * 30 + b"}",
    "2^63": b'{"name": 9223372036854775808}',
    "NaN": b'{"name": NaN}',
    "Infinity": b'{"name": -Infinity}',
    "1e400": b'{"name": 1e400}',
    "NUL in a key": b'{"a\\u0000b": 1}',
    "NUL byte": b'{"name": "\x00"}',
}
WRONG_SHAPES: list[Any] = [
    None,
    True,
    0,
    1.5,
    "",
    "x",
    [],
    [{}],
    [[]],
    {"$where": "1"},
    {"": 1},
    {"a.b": 1},
    {"__proto__": 1},
]
WRONG_SHAPES += [{"unknown": 1}, {"$gt": ""}]
LEGAL_SHAPES = {"/v1/agents/{agent_id}/fork": [None], "/v1/runners/{runner_id}/heartbeat": [None]}
LEGAL_SHAPES |= {"/v1/retention/apply": [None, {}], "/v1/retention": [{}], "/v1/sync": [{}], "/v1/episodes": [{}]}
LEGAL_SHAPES |= {f"/v1/commands/{{command_id}}/{verb}": [None] for verb in ("complete", "fail")}
"""These take no body at all, and null says the same; but nothing is written, for the runner is a stranger."""

TEXT, NUMBER, FLAG, OBJECT, LIST = "text", 7, True, {"a": 1}, [1]
FIELDS: dict[str, dict[str, list[Any]]] = {
    "/v1/agents": {
        "id": [NUMBER, OBJECT, OPERATOR, "a b", "$a", "a.b", "x" * 65, "root", "../x", "ä"],
        "name": [None, NUMBER, FLAG, OPERATOR, LIST, "x" * 1025],
        "owner": [NUMBER, OPERATOR, "", LIST],
        "model": [NUMBER, OPERATOR],
        "settings": [None, TEXT, LIST, NUMBER, {"max_steps": OPERATOR}],
        "delegate": [TEXT, LIST, {"user": TEXT}, {"token": OPERATOR}, {"token": ""}, {"token": NUMBER}],
        "pool": [NUMBER, OPERATOR, "", LIST],
        "platform": [OPERATOR],
        "region": [OPERATOR],
        "dormant": [None, "true", 1, OPERATOR],
        "ttl_seconds": [0, -1, "60", FLAG, OPERATOR, 1e300],
        "idle_seconds": [0, -1, "60", FLAG, OPERATOR],
        "labels": [None, TEXT, LIST, {"a": 1}, {"a": OPERATOR}, {"a": None}, {"": "x"}],
    },
    "/v1/agents/{agent_id}": {
        "name": [None, NUMBER, OPERATOR],
        "model": [NUMBER, OPERATOR],
        "labels": [TEXT, LIST, {"a": 1}, {"a": OPERATOR}],
        "pool": [NUMBER, OPERATOR, ""],
        "platform": [OPERATOR],
        "region": [OPERATOR],
        "ttl_seconds": [0, "1", OPERATOR],
        "idle_seconds": [-1, FLAG, OPERATOR],
    },
    "/v1/agents/import": {
        "holdfast": [None, 0, 2, "1", FLAG, 1.0, OPERATOR],
        "id": [NUMBER, OPERATOR, "root", "a b"],
        "name": [None, OPERATOR],
        "settings": [None, LIST, {"max_steps": OPERATOR}],
        "head": [NUMBER, OPERATOR, "nowhere", "$a"],
        "branch": [NUMBER, OPERATOR, "nowhere", "a/b"],
        "branches": [LIST, {"a": OPERATOR}, {"a/b": "root"}, {"": "root"}],
        "redo": [None, TEXT, [OPERATOR], ["nowhere"]],
        "seq": [-1, "1", 2**63 - 1, OPERATOR],
        "steps": [None, OBJECT, [OPERATOR], [{"id": "a"}]],
        "results": [None, OBJECT, [OPERATOR], [{"step_id": "root", "key": "a/b", "result": 1}]],
        "workspaces": [None, OBJECT, [OPERATOR]],
        "forked_from": [TEXT, OPERATOR],
    },
    "/v1/agents/{agent_id}/delegate": {"user": [TEXT, LIST], "token": [NUMBER, OPERATOR, "", FLAG]},
    "/v1/agents/{agent_id}/fork": {
        "at": [NUMBER, OPERATOR, "", "$a", "nowhere", "x" * 200],
        "name": [NUMBER, OPERATOR],
    },
    "/v1/agents/{agent_id}/steps": {
        "id": [NUMBER, OPERATOR, "", "$a", "a.b", "root", "x" * 65],
        "parent_id": [NUMBER, OPERATOR, "", "$a", "nowhere"],
        "turn_id": [NUMBER, OPERATOR, "", "a.b"],
        "index": [-1, "1", 1.0, FLAG, OPERATOR, 2**63 - 1],
        "role": [None, NUMBER, "king", OPERATOR, LIST],
        "content": [None, NUMBER, LIST, OPERATOR, OBJECT],
        "tool_calls": [None, OBJECT, [TEXT], [OPERATOR], [{"id": 1, "name": "n"}], [{"id": "a", "name": "n", "x": 1}]],
        "tool_results": [None, OBJECT, [{"id": "a", "is_error": "no"}], [OPERATOR]],
        "usage": [None, LIST, TEXT],
        "input_messages": [None, OBJECT, TEXT],
        "source": [None, NUMBER, OPERATOR],
        "refs": [None, OBJECT, TEXT],
        "begin": [None, 1, "true", OPERATOR],
        "end": [None, 0, OPERATOR],
        "data": [None, LIST, TEXT],
        "created_at": [None, 0, "now", "2020-01-01", "2020-13-01T00:00:00Z", "2020-01-01T00:00:00", OPERATOR],
        "steps": [None, [], OBJECT, [OPERATOR], [TEXT], [[]]],
        "seq": [1],
        "version": [1],
    },
    "/v1/agents/{agent_id}/head": {
        "step_id": [None, NUMBER, OPERATOR, "", "$a", "nowhere"],
        "branch": [NUMBER, OPERATOR, "", "$a"],
    },
    "/v1/agents/{agent_id}/branches/{name}": {"step_id": [None, NUMBER, OPERATOR, "", "$a", "nowhere"]},
    "/v1/agents/{agent_id}/revert": {"turn_id": [None, NUMBER, OPERATOR, "", "$a", "nowhere"]},
    "/v1/agents/{agent_id}/results/{key}": {"step_id": [NUMBER, OPERATOR, "", "$a", "nowhere"]},
    "/v1/agents/{agent_id}/transitions": {
        "to": [None, NUMBER, "nowhere", "PENDING", OPERATOR],
        "trigger": [None, FLAG, "magic", OPERATOR],
        "reason": [NUMBER, OPERATOR, "x" * 1025],
    },
    "/v1/agents/{agent_id}/turns": {
        "content": [None, NUMBER, LIST, OPERATOR],
        "role": [None, "king", OPERATOR],
        "id": [NUMBER, OPERATOR, "", "$a", "root", "a"],
        "parent_id": ["nowhere", OPERATOR],
        "tool_calls": [OBJECT, [TEXT]],
        "steps": [LIST],
    },
    "/v1/agents/{agent_id}/turns/{turn_id}/finish": {
        "outcome": [None, "won", OPERATOR],
        "error": [NUMBER, OPERATOR],
        "steps": [None, [], OBJECT, [OPERATOR]],
    },
    "/v1/agents/{agent_id}/resource": {"resource_id": [NUMBER, OPERATOR, "x" * 1025]},
    "/v1/agents/{agent_id}/commands": {
        "action": [None, NUMBER, "dance", OPERATOR],
        "deadline_seconds": [0, -1, "1", FLAG, OPERATOR],
    },
    "/v1/runners": {
        "id": [NUMBER, OPERATOR, "", "a b", "root:x"],
        "pool": [None, NUMBER, "", OPERATOR],
        "platform": [None, "moon", OPERATOR],
        "region": [NUMBER, "", OPERATOR],
        "capacity": [None, 0, -1, "2", 1.5, FLAG, 10**9, OPERATOR],
        "metadata": [None, LIST, TEXT],
    },
    "/v1/runners/{runner_id}/heartbeat": {
        "agents": [TEXT, [NUMBER], ["a b"], [OPERATOR], OBJECT],
        "capacity": [-1, "2", 1.5, FLAG, OPERATOR],
    },
    "/v1/runners/{runner_id}/claim": {
        "max": [None, 0, -1, "1", FLAG, 10**9, OPERATOR],
        "wait_seconds": [None, -1, 61, "1", FLAG, OPERATOR],
    },
    "/v1/runners/{runner_id}/release": {
        "agent": [None, NUMBER, OPERATOR, "$a", "nobody"],
        "hand_off": [NUMBER, OPERATOR, "a b"],
    },
    "/v1/commands/{command_id}/complete": {"unknown": [1]},
    "/v1/commands/{command_id}/fail": {"error": [NUMBER, OPERATOR, LIST]},
    "/v1/pools/{pool}": {
        "restart": [None, "always", OPERATOR],
        "attempts": [None, 0, "1", FLAG, OPERATOR],
        "backoff_seconds": [None, -1, "1", FLAG, OPERATOR],
    },
    "/v1/episodes": {
        "id": [NUMBER, OPERATOR, "", "a b", "$a"],
        "agent_id": [NUMBER, OPERATOR, "a b"],
        "session_id": [NUMBER, OPERATOR, ""],
        "step_id": [NUMBER, OPERATOR, "$a"],
        "task": [None, NUMBER, OPERATOR],
        "reward": [-0.1, 1.1, "1", FLAG, OPERATOR, LIST],
        "critique": [NUMBER, OPERATOR, LIST],
        "tokens": [-1, "1", 1.5, FLAG, OPERATOR, 2**63],
        "latency_ms": [-1, "1", FLAG, OPERATOR],
        "embedding": [TEXT, [], ["1"], [None], [0] * 384, [1], LIST * 385, [FLAG] * 384, OPERATOR],
        "embedder": [NUMBER, OPERATOR, "", "unheard-of"],
        "metadata": [None, LIST, TEXT],
        "created_at": [None, NUMBER, "now", OPERATOR],
        "expires_at": [NUMBER, "now", OPERATOR],
        "episodes": [None, TEXT, [], OBJECT],
        "position": [TEXT],
        "tenant": [TEXT],
        "success": [FLAG],
    },
    "/v1/episodes/search": {
        "text": [None, NUMBER, "", OPERATOR],
        "vector": [TEXT, [], LIST, OPERATOR],
        "embedder": [NUMBER, "unheard-of"],
        "k": [None, 0, -1, "1", 201, FLAG, OPERATOR],
        "min_reward": [-1, 2, "1", OPERATOR],
        "agent": [NUMBER, OPERATOR, "a b"],
        "session": [NUMBER, OPERATOR, ""],
        "since": [NUMBER, "now", OPERATOR],
        "exclude_abandoned": [None, "true", 1, OPERATOR],
    },
    "/v1/sync": {
        "cursor": [NUMBER, "x", OPERATOR, "f" * 28],
        "limit": [0, -1, "1", 201, OPERATOR],
        "episodes": [None, TEXT, OBJECT, [{}] * 1001],
    },
    "/v1/retention": {
        "max_age_days": [0, -1, "1", FLAG, OPERATOR, 1e300],
        "min_reward": [-1, 2, "1", FLAG, OPERATOR],
    },
    "/v1/retention/apply": {"dry_run": [None, "true", 1, OPERATOR]},
}
"""Wrong values for each documented field, laid over the route's good body."""

HEADERS: dict[str, list[str]] = {
    "If-Match": ["abc", '"x"', "-1", "1.5", '"1","2"', "9" * 40, "$gt", "\x00", "\xff"],
    "Fencing-Token": ["-1", "abc", "1.0", "9" * 40, "", "$gt", "\xff"],
    "Idempotency-Key": ["x" * 256, "a b", "a\tb", "\x7f", "\xff", ""],
    "Content-Type": ["text/plain", "application/xml", "multipart/form-data", "application/x-msgpack", "x", "json"],
    "Host": ["", "evil.example", "a b", "[", "\xff"],
    "Origin": ["http://evil.example", "null", "", "[", "\xff"],
    "Authorization": ["Bearer", "Basic eDp5", "Bearer \xff", "Bearer $gt", "x" * 10_000, ""],
}
QUERIES: dict[Route, list[str]] = {
    ("GET", "/v1/agents"): [
        *(
            "limit=0",
            "limit=999",
            "limit=-1",
            "limit=x",
            "limit=%ff",
            "limit=",
            "limit[$gt]=&limit=x",
            f"limit={10**30}",
        ),
        *("cursor=x", "cursor=%00", "cursor=e30", "cursor=" + "A" * 5000, "cursor=eyJhZ2VudCI6eyIkZ3QiOiIifX0"),
        *("state=x", "state=%24gt", "status=x", "label=x", "archived=x", "archived=%ff"),
    ],
    ("GET", "/v1/agents/{agent_id}"): [
        *("steps=x", "steps=", "steps_limit=-1", "steps_limit=10001", "steps_limit=x", "min_version=-1"),
        *(f"min_version={10**30}", "min_version=x", "min_version=%ff", "min_version=1.5"),
    ],
    ("GET", "/v1/agents/{agent_id}/steps"): [
        *("limit=0", "limit=201", "limit=x", "view=x", "ref=nowhere", "ref=%00", "ref=%24gt", "after_seq=-1"),
        *(
            f"after_seq={10**30}",
            "after_seq=x",
            "cursor=x",
            "cursor=eyJsZWFmIjp7IiRndCI6IiJ9fQ",
            "cursor=eyJsZWFmIjoieCJ9",
        ),
        *("min_version=-1", "min_version=x"),
    ],
    ("GET", "/v1/agents/{agent_id}/diff"): [
        "",
        "from=nowhere",
        "from=%00",
        "from=root&to=%ff",
        "from=%24gt",
        "to=root",
    ],
    ("GET", "/v1/episodes"): [
        *("limit=0", "limit=x", "cursor=x", "cursor=eyJlcGlzb2RlIjp7IiRndCI6IiJ9fQ", "min_reward=x", "min_reward=2"),
        *("min_reward=-1", "min_reward=%ff", "min_reward=nan", "cursor=%00"),
    ],
    ("GET", "/v1/sync"): ["limit=0", "limit=201", "limit=x", "cursor=x", "cursor=%00", "cursor=" + "f" * 28],
    ("POST", "/v1/agents/{agent_id}/steps"): ["advance_head=x", "advance_head=", "advance_head=%ff", "advance_head=2"],
}
UNKEYED = ("/claim", "/heartbeat", "/tickets", "/search")
KEYED = {route for route in SAMPLES if route[0] == "POST" and not route[1].endswith(UNKEYED)}
"""Routes that take an Idempotency-Key: all that write, but those that only say or ask something."""

LEADS_ELSEWHERE = ("%2F",)
"""Legitimate: an encoded slash is a slash, so that this is the path of the list."""
PATHS = [
    *(
        "nobody",
        "%00",
        "%2F",
        "a%2Fb",
        "..",
        "%2e%2e",
        "a.b",
        "$gt",
        "%7B%22$gt%22:%22%22%7D",
        "x" * 5_000,
        quote("ключ"),
    ),
    *("%ff", "default:x", "a%0Ab", "%20", "root", "*", "a;b", "%F0%9F%98%80"),
]


@pytest.fixture(scope="session")
def own_settings(open_settings: Settings, new_database: Callable[[], str]) -> Settings:
    """A database of this file's own, so that nothing of others is reconciled in it meanwhile."""
    return open_settings.model_copy(update={"mongodb_database": new_database(), "runner_ttl_seconds": 3600})


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def api(own_settings: Settings, mongo_uri: str) -> AsyncIterator[Api]:
    """A caller of a replica over it."""
    async with serving(own_settings, mongo_uri) as caller:
        yield caller


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def agent(api: Api) -> Handle:
    made = await prepared(api)
    await api.call("GET", "/v1/sync")  # its episode has its place in the change log now
    return made


@pytest.fixture(autouse=True)
def nothing_is_written(agent: Handle, mongo: MongoClient[dict[str, Any]], own_settings: Settings) -> Iterator[None]:
    """Every collection is the same to the byte afterwards, but for those that the service writes by itself."""
    database = mongo[own_settings.mongodb_database]
    raw = CodecOptions(document_class=RawBSONDocument)

    def stored() -> dict[str, list[bytes]]:
        names = sorted(set(database.list_collection_names()) - BY_ITSELF)
        return {name: sorted(found.raw for found in database.get_collection(name, raw).find()) for name in names}

    before = stored()
    yield
    assert stored() == before


async def sent(api: Api, route: Route, path: str, content: bytes | None = None, **headers: str) -> httpx.Response:
    given = {**(JSON if content is not None else {}), **headers}
    raw = {name.encode(): value.encode("latin-1") for name, value in given.items()}
    return await api.http.request(route[0], path, content=content, headers=raw)


def refused(answer: httpx.Response, what: object) -> None:
    """A problem of a known slug, below 500."""
    assert 400 <= answer.status_code < 500, (what, answer.status_code, answer.text[:500])
    assert problem_of(answer)["detail"], what


def good_body(route: Route) -> bytes | None:
    body = SAMPLES[route].body
    return None if body is NOTHING else json.dumps(body).encode()


@pytest.mark.parametrize("route", TAKES_BODY, ids=name_of)
async def test_malformed_body_is_refused(api: Api, agent: Handle, route: Route) -> None:
    """By every route that takes one."""
    for what, content in MALFORMED.items():
        refused(await sent(api, route, path_of(route, agent.id), content), what)
    refused(await sent(api, route, path_of(route, agent.id), b'"' + b"x" * 9_000_000 + b'"'), "oversize")


@pytest.mark.parametrize("route", WITH_FIELDS, ids=name_of)
async def test_body_of_another_shape_is_refused(api: Api, agent: Handle, route: Route) -> None:
    """By every route whose body has known fields."""
    legal = LEGAL_SHAPES.get(route[1], [])
    free = route[1].endswith("/delegate")
    for shape in WRONG_SHAPES:
        if shape in legal or (free and isinstance(shape, dict)):
            continue
        refused(await sent(api, route, path_of(route, agent.id), json.dumps(shape).encode()), shape)


def test_every_route_with_fields_has_wrong_values_for_them() -> None:
    """A new route that takes fields is added to the corpus, or this fails."""
    assert {route[1] for route in WITH_FIELDS} == FIELDS.keys()


@pytest.mark.parametrize("route", WITH_FIELDS, ids=name_of)
async def test_wrong_value_of_a_field_is_refused(api: Api, agent: Handle, route: Route) -> None:
    """Also when everything else of the body is good; operators of the database are just wrong values."""
    for name, values in FIELDS[route[1]].items():
        for value in values:
            content = json.dumps({**SAMPLES[route].body, name: value}).encode()
            refused(await sent(api, route, path_of(route, agent.id), content), (name, value))


@pytest.mark.parametrize("route", sorted(SAMPLES), ids=name_of)
async def test_odd_header_is_refused(api: Api, agent: Handle, route: Route) -> None:
    """Where a header means something it is checked; where it means nothing a good request is not sent here."""
    method = route[0]
    for name, values in HEADERS.items():
        if name == "Content-Type" and SAMPLES[route].body is NOTHING:
            continue
        if name in ("If-Match", "Fencing-Token") and (method == "GET" or "{agent_id}" not in route[1]):
            continue
        if name == "Idempotency-Key" and route not in KEYED:
            continue
        for value in values:
            refused(await sent(api, route, path_of(route, agent.id), good_body(route), **{name: value}), (name, value))


@pytest.mark.parametrize("route", sorted(QUERIES), ids=name_of)
async def test_odd_query_is_refused(api: Api, agent: Handle, route: Route) -> None:
    """Out of range, of another type, of another list, in no encoding."""
    for query in QUERIES[route]:
        refused(await sent(api, route, f"{path_of(route, agent.id)}?{query}", good_body(route)), query)


async def test_unknown_or_repeated_parameters_do_no_harm(api: Api, agent: Handle) -> None:
    """Legitimate: what a route does not know it ignores, and of a repeated parameter it takes one."""
    for query in (
        "x=1",
        "%24where=1",
        "limit=1&limit=2",
        "limit=5&pool[$gt]=",
        "pool=%00",
        "pool=%24gt",
        "runner=%F0%9F%98%80",
    ):
        answer = await api.http.get(f"/v1/agents?{query}")
        assert answer.status_code in (200, 400), (query, answer.text)
    assert (await api.http.get("/v1/agents?pool={%22$gt%22:%22%22}")).json()["items"] == []
    assert (await api.http.get("/v1/agents?pool[$ne]=x&limit=1")).status_code == 200


@pytest.mark.parametrize("route", [route for route in sorted(SAMPLES) if "{agent_id}" in route[1]], ids=name_of)
async def test_odd_agent_in_the_path_is_refused(api: Api, route: Route) -> None:
    """Whatever stands where an id belongs."""
    for path in PATHS:
        answer = await sent(api, route, path_of(route, path), good_body(route))
        if route == ("GET", "/v1/agents/{agent_id}") and path in LEADS_ELSEWHERE:
            assert answer.status_code == 200
        else:
            refused(answer, path)


async def test_odd_step_branch_or_key_in_the_path_is_refused(api: Api, agent: Handle) -> None:
    """Not found on reading, refused on writing."""
    for odd in ("%00", "a%00b", "x" * 200, "%0A", "%7F", "a%2Fb"):
        for route in [("GET", "steps"), ("GET", "results"), ("DELETE", "branches")]:
            refused(await sent(api, route, f"/v1/agents/{agent.id}/{route[1]}/{odd}"), odd)
        for route, body in [(("PUT", "results"), b'{"result": 1}'), (("PUT", "branches"), b'{"step_id": "a"}')]:
            refused(await sent(api, route, f"/v1/agents/{agent.id}/{route[1]}/{odd}", body), odd)
