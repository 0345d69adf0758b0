"""The least that a web service can be: constant answers from a bare ASGI application, under the replicas' own server.

Run as `python -m scripts.bench.bare PORT SIZE…`: `GET /SIZE` answers so many bytes, `GET /unchanged` a 304, each with
as many headers as a replica's answer from memory has.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    from litestar.types import ASGIApp, Receive, Scope, Send

_HEADERS = [
    (b"x-request-id", b"0" * 32),
    (b"x-content-type-options", b"nosniff"),
    (b"age", b"0"),
    (b"etag", b'"1"'),
]
_READY = "/health/ready"


def application(sizes: list[int]) -> ASGIApp:
    """The application: whatever it is asked, the answer is there already."""
    answers = {f"/{size}": (200, [*_HEADERS, *_described(size)], b"x" * size) for size in sizes}
    answers[_READY] = (200, [*_HEADERS, *_described(0)], b"")
    answers["/unchanged"] = (304, _HEADERS, b"")

    async def answer(scope: Scope, _: Receive, send: Send) -> None:
        status, headers, body = answers[scope["path"]]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    return answer


def main() -> None:
    """Serve until the process is told to end."""
    port, *sizes = map(int, sys.argv[1:])
    uvicorn.run(
        application(sizes),
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
    )


def _described(size: int) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", b"application/json"), (b"content-length", str(size).encode())]


if __name__ == "__main__":
    main()
