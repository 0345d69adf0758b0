"""A subscriber of your own: keeps the change log of a tenant in SQLite, every entry once, in order. Copy it.

It needs httpx and typer, and nothing of Holdfast but its HTTP interface. Three rules are enough to lose nothing and to
double nothing, whoever dies at whatever moment, this program, a replica or the network:

1. Entries and the cursor behind them are kept in one transaction.
2. Whatever ended a connection, the next one goes on after the cursor that is kept, on any replica.
3. An agent's version is in the log once, so an entry that comes again is known by it.

Try it: `python -m scripts.example_subscriber --into changes.sqlite`, then
`sqlite3 changes.sqlite 'SELECT number, agent, version, entry FROM entries'`.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

TABLES = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY, agent TEXT NOT NULL, version INTEGER NOT NULL, entry TEXT NOT NULL,
    UNIQUE (agent, version)
);
CREATE TABLE IF NOT EXISTS place (only INTEGER PRIMARY KEY CHECK (only = 1), cursor TEXT NOT NULL);
"""
TIMEOUT = httpx.Timeout(10, read=40)  # a feed sends a heartbeat every 15 s: 40 s of silence mean that nobody is there
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0


class Refused(Exception):
    """Asking again would not help; the message says what would."""


class TooOld(Refused):
    """Entries after the cursor are not kept any more: something was missed."""


class Notebook:
    """What was heard so far, and up to where."""

    def __init__(self, file: Path) -> None:
        self._sqlite = sqlite3.connect(file)
        self._sqlite.executescript(TABLES)

    @property
    def cursor(self) -> str | None:
        """Where to go on; None at the very beginning."""
        found = self._sqlite.execute("SELECT cursor FROM place").fetchone()
        return found[0] if found else None

    def keep(self, entries: list[dict[str, Any]]) -> None:
        """Keep entries and the cursor of the last, all or nothing."""
        if entries:
            rows = [(entry["agent"], entry["version"], json.dumps(entry)) for entry in entries]
            with self._sqlite:
                self._sqlite.executemany("INSERT OR IGNORE INTO entries (agent, version, entry) VALUES (?, ?, ?)", rows)
                place = (entries[-1]["cursor"],)
                self._sqlite.execute("INSERT OR REPLACE INTO place (only, cursor) VALUES (1, ?)", place)


class Subscriber:
    """Follows the log into a notebook, on whichever replica answers."""

    def __init__(self, urls: list[str], key: str | None, notebook: Notebook) -> None:
        self._urls = urls
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._notebook = notebook

    def follow(self, *, from_now: bool, from_oldest: bool) -> None:
        """Go on for ever. Raises Refused."""
        pause, anew = FIRST_PAUSE, False
        for url in cycle(self._urls):
            before = self._notebook.cursor
            try:
                with httpx.Client(base_url=url, headers=self._headers, timeout=TIMEOUT) as replica:
                    if before or not from_now:
                        self._catch_up(replica, anew=anew)
                    anew = False
                    say(f"following {url}")
                    self._listen(replica)
            except (httpx.HTTPError, ValueError, LookupError) as error:
                say(f"{url} does not serve ({type(error).__name__})")
            except TooOld as gap:
                if not from_oldest:
                    raise
                say(f"{gap} Going on at the oldest entry that is kept.")
                anew = True
            pause = FIRST_PAUSE if self._notebook.cursor != before else min(pause * 2, LONGEST_PAUSE)
            time.sleep(random.uniform(pause / 2, pause))

    def _catch_up(self, replica: httpx.Client, *, anew: bool) -> None:
        """Read by pages what the log holds after the cursor, or all of it. Then there is a cursor to listen from."""
        cursor = None if anew else self._notebook.cursor
        while True:
            answer = replica.get("/v1/changes", params={"limit": 200, **({"cursor": cursor} if cursor else {})})
            page = accepted(answer).json()
            self._notebook.keep(page["items"])
            cursor = self._notebook.cursor
            if page["next_cursor"] is None and cursor:
                return
            if not cursor:
                time.sleep(1)  # the log is empty: a feed without a cursor begins now, and could miss its first entry

    def _listen(self, replica: httpx.Client) -> None:
        """Keep what happens, until the replica ends the feed, for instance because we were too slow for it."""
        cursor = self._notebook.cursor
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": cursor} if cursor else {})}
        with replica.stream("GET", "/v1/changes", headers=headers) as answer:
            for event, data in events(accepted(answer).iter_bytes()):
                if event != "change":  # `gap` or `error`: what is missing is in the log, after our cursor
                    say(f"the feed ended: {data}")
                    return
                self._notebook.keep([json.loads(data)])


def accepted(answer: httpx.Response) -> httpx.Response:
    """The answer, when it is what was asked for. Raises Refused, or httpx.HTTPError when asking again may help."""
    status = answer.status_code
    if 400 <= status < 500 and status != 429:
        answer.read()
        detail = answer.json().get("detail", "") if "json" in answer.headers.get("content-type", "") else ""
        raise (TooOld if status == 410 else Refused)(f"{answer.url.host} answers {status}: {detail}")
    return answer.raise_for_status()


def events(chunks: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """The events of a stream, as type and data; comments, which are its heartbeats, are left out.

    Lines are parted here because httpx parts them at more characters than the format does.
    """
    buffered = b""
    for chunk in chunks:
        *blocks, buffered = (buffered + chunk).split(b"\n\n")
        for block in blocks:
            fields = dict(line.partition(": ")[::2] for line in block.decode().split("\n"))
            if "data" in fields:
                yield fields.get("event", "message"), fields["data"]


def say(text: str) -> None:
    """A message for people."""
    print(text, file=sys.stderr, flush=True)


def main(
    into: Annotated[Path, typer.Option(help="The SQLite file; made when it is not there.")],
    url: Annotated[list[str] | None, typer.Option(help="A replica; give it several times for several.")] = None,
    key_from_env: Annotated[bool, typer.Option("--key-from-env", help="Insist on a key in HOLDFAST_KEY.")] = False,
    from_now: Annotated[
        bool, typer.Option("--from-now", help="Begin a new file with the first entry seen live.")
    ] = False,
    from_oldest: Annotated[
        bool, typer.Option("--from-oldest", help="When entries were missed for ever, go on at the oldest kept.")
    ] = False,
) -> None:
    """Keep a tenant's change log in SQLite, every entry exactly once, in order. Stop it however you like.

    A key of the tenant is taken from the environment variable HOLDFAST_KEY.

    Example: python -m scripts.example_subscriber --url http://127.0.0.1:8700 --into changes.sqlite
    """
    key = os.environ.get("HOLDFAST_KEY", "").strip()
    if key_from_env and not key:
        raise typer.BadParameter("HOLDFAST_KEY is not set.", param_hint="--key-from-env")
    urls = url or ["http://127.0.0.1:8700"]
    if not all(one.startswith(("http://", "https://")) for one in urls):
        raise typer.BadParameter("a replica's address begins with http:// or https://", param_hint="--url")
    try:
        Subscriber(urls, key, Notebook(into)).follow(from_now=from_now, from_oldest=from_oldest)
    except (Refused, sqlite3.Error, httpx.InvalidURL) as problem:
        hint = " Start again with --from-oldest to take what is left." if isinstance(problem, TooOld) else ""
        say(f"{problem}{hint}")
        raise typer.Exit(1) from problem


if __name__ == "__main__":
    typer.run(main)
