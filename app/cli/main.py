"""The commands together, and the one place where failures become sentences."""

from __future__ import annotations

import sys

import typer
from pydantic import ValidationError
from pymongo.errors import ConfigurationError, PyMongoError

from app.archive import ArchiveProblem
from app.backup import BackupProblem
from app.cli import backups, collect, database, doctor, erase, imports, keys, migrate, reconcile, serve
from app.cli.console import Failure, say
from app.config import Settings
from app.mongo import DatabaseProblem
from app.mongod import EmbeddedError
from app.restore import RestoreProblem
from app.telemetry import configure_logging
from app.traces import TraceError
from app.vault import SecretKeyProblem
from models.errors import HoldfastError

_TOLD = (
    *(Failure, DatabaseProblem, EmbeddedError, SecretKeyProblem, TraceError),
    *(ArchiveProblem, BackupProblem, RestoreProblem),
)

cli = typer.Typer(
    name="holdfast",
    help="Holdfast keeps agents: each is one MongoDB document, served by any replica.\n\n"
    "Begin with: holdfast serve. Without MONGODB_URI it starts an embedded database in HOLDFAST_DATA (./.holdfast).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cli.add_typer(database.commands, name="db")
cli.add_typer(keys.commands, name="keys")
cli.command("serve")(serve.serve)
cli.command("import")(imports.take_in)
cli.command("collect")(collect.collect)
cli.command("doctor")(doctor.examine)
cli.command("reconcile")(reconcile.reconcile)
cli.command("migrate")(migrate.migrate)
cli.command("erase")(erase.erase)
cli.command("backup")(backups.backup)
cli.command("restore")(backups.restore)


def main() -> None:
    """Run the program; the exit code is 0 only when it did what was asked."""
    sys.exit(_run())


def _run() -> int:
    try:
        settings = Settings()
        configure_logging("warning", settings.log_format)
        code = cli(standalone_mode=False)
    except typer.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except typer.Exit as exit_:
        return exit_.exit_code
    except Exception as error:  # noqa: BLE001 - a command that fails tells people, never a traceback
        return _told(error)
    return code if isinstance(code, int) else 0


def _told(error: Exception) -> int:
    """Say in one sentence what failed; what nobody foresaw is named by its kind."""
    show = getattr(error, "show", None)
    if callable(show):
        show()
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, _TOLD):
        say(str(error))
    elif isinstance(error, HoldfastError):
        say(error.detail)
    elif isinstance(error, ValidationError):
        for wrong in error.errors():
            say(f"{_variable(wrong['loc'])}: {wrong['msg']}")
    elif isinstance(error, ConfigurationError):
        say(f"MONGODB_URI is not a usable address: {error}.")
    elif isinstance(error, PyMongoError):
        say(f"The database failed ({type(error).__name__}): is it running? 'holdfast doctor' looks closer.")
    else:
        say(f"Something unforeseen failed: {type(error).__name__}: {error}")
    return 1


def _variable(where: tuple[int | str, ...]) -> str:
    """The environment variable that a setting was read from."""
    name = "_".join(map(str, where)).upper()
    return name if name.startswith("MONGODB_") else f"HOLDFAST_{name}"
