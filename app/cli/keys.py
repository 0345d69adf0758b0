"""`holdfast keys`: who may call."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.console import answer, say, with_runtime
from app.clock import instant
from app.runtime import Runtime
from models.tenant import DEFAULT_TENANT, KeyRecord, Right

commands = typer.Typer(
    help="Create, list and revoke keys. After the first one nothing is answered without a key.\n\n"
    "Example: holdfast keys create --tenant acme --right read --right write",
    no_args_is_help=True,
)


@commands.command()
def create(
    right: Annotated[list[Right], typer.Option(help="What it may do; give it several times.")],
    tenant: Annotated[str, typer.Option(help="Whose agents it sees.")] = DEFAULT_TENANT,
    owner: Annotated[str | None, typer.Option(help="Only the agents of this owner.")] = None,
    name: Annotated[str | None, typer.Option(help="To recognise it in the list.")] = None,
) -> None:
    """Make a key. It is the last line, shown this once: only its hash is kept."""

    async def work(runtime: Runtime) -> tuple[KeyRecord, str]:
        return await runtime.keys.create(tenant, right, owner=owner, name=name)

    record, token = with_runtime(work)
    say(f"Key {record.id} of tenant '{tenant}' may {', '.join(record.rights)}. Keep it: it is not shown again.")
    answer(token)


@commands.command("list")
def list_(tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None) -> None:
    """List the keys, without their secrets: id, tenant, rights, owner, name, creation, state."""

    async def work(runtime: Runtime) -> list[KeyRecord]:
        return await runtime.keys.list(tenant)

    found = with_runtime(work)
    if not found:
        say("There are no keys.")
    for key in found:
        state = "active" if key.revoked_at is None else f"revoked {instant(key.revoked_at)}"
        columns = (key.id, key.tenant, ",".join(key.rights), key.owner or "-", key.name or "-", instant(key.created_at))
        answer("\t".join((*columns, state)))


@commands.command()
def revoke(key: Annotated[str, typer.Argument(help="The key's id, as the list shows it.")]) -> None:
    """End a key: within 2 seconds on every replica."""

    async def work(runtime: Runtime) -> KeyRecord:
        return await runtime.keys.revoke(key)

    record = with_runtime(work)
    say(f"Key {record.id} of tenant '{record.tenant}' is revoked.")
