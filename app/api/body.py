"""JSON bodies: limits first, then form. What breaks either is refused before anything of it is used.

A `StrictJSON` DTO stands in for Litestar's own decoding, which coerces types and answers 500 to bad UTF-8.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec
from litestar.dto import AbstractDTO
from pydantic import TypeAdapter, ValidationError

from app.config import Settings
from models.errors import InvalidRequest, TooLarge

if TYPE_CHECKING:
    from litestar._openapi.schema_generation import SchemaCreator
    from litestar.dto.data_structures import DTOFieldDefinition
    from litestar.openapi.spec import Reference, Schema
    from litestar.typing import FieldDefinition

_INT64 = range(-(2**63), 2**63)
_MEDIA_TYPES = ("application/json", "application/merge-patch+json")
_SHOWN_ERRORS = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """What a body may be at most; with `of_steps` each item of its `steps` has a key budget of its own."""

    size: int
    depth: int
    keys: int
    of_steps: bool = False


def decode(body: bytes, limits: Limits) -> Any:
    """The JSON value of a body within its limits. Raises InvalidRequest or TooLarge, which say where it broke."""
    if len(body) > limits.size:
        raise TooLarge("The body", limits.size, len(body))
    try:
        value = msgspec.json.decode(body)
    except UnicodeDecodeError as error:
        raise InvalidRequest("The body is not valid UTF-8.") from error
    except RecursionError as error:
        raise InvalidRequest(f"The body is nested deeper than {limits.depth} levels.") from error
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from error
    steps = value.get("steps") if limits.of_steps and isinstance(value, dict) else None
    if not isinstance(steps, list):
        steps = []
    _check(value, limits, 1, apart=steps)
    for step in steps:
        _check(step, limits, _DEPTH_OF_A_STEP)
    return value


_DEPTH_OF_A_STEP = 3


def _check(value: Any, limits: Limits, depth: int, apart: list[Any] | None = None) -> None:
    """Raise InvalidRequest when a value breaks a limit: depth, keys, integers, NUL. `apart` is not looked into."""
    budget = _KeyBudget(limits.keys)
    stack: list[tuple[Any, int]] = [(value, depth)]
    while stack:
        item, depth = stack.pop()
        if isinstance(item, dict | list):
            if depth > limits.depth:
                raise InvalidRequest(f"The body is nested deeper than {limits.depth} levels.")
            if isinstance(item, dict):
                budget.spend(item)
            if item is not apart:
                stack.extend((inner, depth + 1) for inner in (item.values() if isinstance(item, dict) else item))
        elif isinstance(item, int) and item not in _INT64:
            raise InvalidRequest("An integer is outside the 64-bit range: send it as a string.")


class _KeyBudget:
    def __init__(self, keys: int) -> None:
        self._limit = self._left = keys

    def spend(self, item: dict[str, Any]) -> None:
        self._left -= len(item)
        if self._left < 0:
            raise InvalidRequest(f"The body has more than {self._limit} keys.")
        if any("\0" in key for key in item):
            raise InvalidRequest("A key holds the character NUL.")


@lru_cache(maxsize=256)
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def validated(value: Any, annotation: Any) -> Any:
    """The value as the annotated type, without coercion. Raises InvalidRequest, naming each field that is wrong."""
    try:
        return _adapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        raise InvalidRequest(_explained(error)) from error


def _explained(error: ValidationError) -> str:
    wrong = error.errors(include_url=False, include_input=False, include_context=False)
    lines = [f"{'.'.join(map(str, item['loc'])) or 'body'}: {item['msg']}" for item in wrong[:_SHOWN_ERRORS]]
    more = len(wrong) - _SHOWN_ERRORS
    return "; ".join(lines) + (f"; and {more} more" if more > 0 else "") + "."


class StrictJSON(AbstractDTO[Any]):
    """Decodes a handler's `data` by `decode` and `validated`; documents it by its annotation."""

    model_type = object

    def decode_bytes(self, value: bytes) -> Any:
        connection = self.asgi_connection
        sent = connection.headers.get("content-type", _MEDIA_TYPES[0]).partition(";")[0].strip().lower()
        if sent not in _MEDIA_TYPES:
            raise InvalidRequest(f"Send the body as {_MEDIA_TYPES[0]}, not as '{sent[:64]}'.")
        handler = connection.route_handler
        settings: Settings = connection.app.state.settings
        depth = settings.json_depth + handler.opt["wrapped"]
        limits = Limits(settings.body_limit_bytes, depth, settings.json_keys, handler.opt["of_steps"])
        return validated(decode(value, limits), handler.parsed_data_field.raw)

    @classmethod
    def create_for_field_definition(
        cls, field_definition: FieldDefinition, handler_id: str, backend_cls: Any = None
    ) -> None:
        """Nothing to prepare: the annotation is all that `decode_bytes` needs."""

    @classmethod
    def create_openapi_schema(
        cls, field_definition: FieldDefinition, handler_id: str, schema_creator: SchemaCreator
    ) -> Reference | Schema:
        return schema_creator.for_field_definition(field_definition)

    @classmethod
    def generate_field_definitions(cls, model_type: type[Any]) -> Generator[DTOFieldDefinition, None, None]:
        yield from ()

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:
        return False
