"""The OpenAPI document says what the service does: complete, self-contained, and true for generated requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as openapi_checks

from tests.api.driver import HOST, Api, Json
from tests.contract.samples import routes_of_the_application

BOUNDED = settings(
    max_examples=15,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
"""Few requests for each operation, the same ones every time."""

PATIENCE = 25
"""How often a request is sent again that is answered 503; what stays so is a failure."""

HELD = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.response_headers_conformance,
]


async def document_of(api: Api) -> Json:
    document: Json = (await api.call("GET", "/schema/openapi.json")).json()
    return document


def operations(document: Json) -> dict[tuple[str, str], Json]:
    return {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }


async def test_document_mentions_every_route(api: Api) -> None:
    """And no other; each with its refusals."""
    found = operations(await document_of(api))
    assert found.keys() == routes_of_the_application()
    for (method, path), operation in found.items():
        wanted = {"400", "403", "503"} | ({"401", "404"} if path.startswith("/v1/agents/{") else set())
        assert wanted <= operation["responses"].keys(), (method, path)


async def test_operation_ids_are_unique(api: Api) -> None:
    """So that clients can be generated."""
    counted = Counter(operation["operationId"] for operation in operations(await document_of(api)).values())
    assert counted.most_common(1)[0][1] == 1


async def test_document_loads_nothing_from_elsewhere(api: Api) -> None:
    """No address of another host stands in it, nor in what else is served beside it."""
    for path in ("/schema/openapi.json", "/schema"):
        answer = await api.call("GET", path, expect=200)
        assert "http://" not in answer.text
        assert "https://" not in answer.text
        assert "<script" not in answer.text


def requested(case: schemathesis.Case) -> dict[str, Any]:
    """A generated case as the arguments of an httpx request."""
    prepared = requests.Request(**case.as_transport_kwargs(base_url=HOST)).prepare()
    headers = {name.encode(): str(value).encode("utf-8") for name, value in prepared.headers.items()}
    return {"method": prepared.method, "url": prepared.url, "content": prepared.body, "headers": headers}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=str)
async def test_generated_requests_are_answered_as_documented(api: Api, mode: GenerationMode) -> None:
    """Good and bad ones, to strangers and to an agent that is there: status, form and body are those promised."""
    schema = schemathesis.openapi.from_dict(await document_of(api))
    loop = asyncio.get_running_loop()

    async def answered(case: schemathesis.Case) -> httpx.Response:
        answer = await api.http.request(**requested(case))
        for _ in range(PATIENCE):  # making up requests takes the replica's loop its time: its stream may fall silent
            if answer.status_code != 503:
                break
            await asyncio.sleep(0.2)
            answer = await api.http.request(**requested(case))
        return answer

    def ask(case: schemathesis.Case) -> httpx.Response:
        return asyncio.run_coroutine_threadsafe(answered(case), loop).result(60)

    def hold(operation: Any, agent: str) -> None:
        @BOUNDED
        @given(case=operation.as_strategy(generation_mode=mode), known=st.booleans())
        def held(case: schemathesis.Case, known: bool) -> None:
            if known and "agent_id" in case.path_parameters:
                case.path_parameters["agent_id"] = agent
                (case.query or {}).pop("min_version", None)  # the one thing that a read may answer 503 to
            case.validate_response(ask(case), checks=HELD)

        with suppress(Unsatisfiable):  # of some operations no wrong request can be made
            held()

    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.POSITIVE or operation.query or operation.headers or operation.body:
            await asyncio.to_thread(hold, operation, (await api.made()).id)
