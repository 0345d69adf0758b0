"""Walks the change log and proves that it agrees with the agents' documents: `python -m scripts.replay AGENT`.

It reads the database that the environment names, as the command line does, and writes nothing: no heartbeat, no entry.
Writers may go on meanwhile. A document is read first and its log after it, so what the log has beyond is left alone.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from pydantic import ValidationError
from pymongo.errors import PyMongoError

from app.cli.console import answer, database, progress, say
from app.config import Settings
from app.mongo import DatabaseProblem, Mongo, check, open_client
from app.mongod import EmbeddedError
from app.replay import Walk
from models.errors import NotFound
from models.ids import agent_key
from models.tenant import DEFAULT_TENANT

command = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@command.command()
def replay(
    agent: Annotated[str | None, typer.Argument(help="The agent to look at, by its id.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose agent it is (default); with --all: only theirs.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Look at every agent, of all tenants unless one is given.")
    ] = False,
) -> None:
    """Prove that the change log agrees with the documents of agents; prints a line for each agent, then a summary.

    Versions must follow each other without a hole, every step must stand in the entry of its version and every step
    of an entry in the document, and the newest entry must say what the document says. It only reads, also while others
    write. MONGODB_URI names the database, else HOLDFAST_DATA. The exit code is 1 when anything differs.

    Example: python -m scripts.replay --all
    """
    if every == (agent is not None):
        raise typer.BadParameter("name one agent, or give --all.", param_hint="AGENT")
    try:
        key = None if agent is None else agent_key(tenant or DEFAULT_TENANT, agent)
        settings = Settings()
        with database(settings) as uri:
            differing = asyncio.run(_walk(settings, uri, key, tenant))
    except (NotFound, DatabaseProblem, EmbeddedError) as problem:
        say(str(problem))
        raise typer.Exit(1) from problem
    except ValidationError as error:
        say("; ".join(f"the setting {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}" for wrong in error.errors()))
        raise typer.Exit(1) from error
    except PyMongoError as error:
        say(f"The database failed ({type(error).__name__}): is it running? 'holdfast doctor' looks closer.")
        raise typer.Exit(1) from error
    raise typer.Exit(1 if differing else 0)


async def _walk(settings: Settings, uri: str, key: str | None, tenant: str | None) -> int:
    """Judge one agent, or all of a tenant; how many differ."""
    await check(uri)
    mongo = Mongo.of(open_client(uri), settings.mongodb_database)
    differing = 0
    try:
        walk = Walk(mongo)
        keys = await walk.agents(tenant) if key is None else [key]
        with progress() as bars:
            for one in bars.track(keys, description="replaying"):
                verdict = await walk.judge(one)
                answer(str(verdict))
                differing += verdict.difference is not None
    finally:
        await mongo.client.close()
    answer(f"{len(keys)} looked at, {len(keys) - differing} agree, {differing} differ")
    return differing


if __name__ == "__main__":
    command(prog_name="python -m scripts.replay")
