"""The house's own lints, for what no general tool knows: `python -m scripts.lints [folder]`.

They read source as a tree and run none of it. They look for slips, not for malice: a collection that travels through
a variable of another function is not followed.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

WRITES = re.compile(r"(insert|update|delete|replace)_(one|many)|bulk_write|find_one_and_(update|replace|delete)")
QUERIES = re.compile(
    r"find|find_one|find_raw_batches|aggregate|aggregate_raw_batches|count_documents|distinct"
    r"|(update|delete)_(one|many)|find_one_and_(update|replace|delete)"
)
WHOLE = re.compile(r"save|save_changes|replace_one|replace_many|find_one_and_replace|ReplaceOne")
"""Calls that send a whole document: a lost update at best, a deleted agent back from the dead at worst."""

BEANIE_REPLACE = {"ignore_revision", "session", "bulk_writer", "link_rule", "skip_actions"}
"""What a Beanie document's `replace` may be given; the `replace` of text, dates, paths and dataclasses takes none."""

EMPTY_NAMES = {"manager", "service", "helper", "util", "common", "base"}
"""Names that would fit any module or class, and so tell nothing."""

UNSCOPED = re.compile(r"#\s*unscoped:\s*\S")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


@dataclass(frozen=True, order=True)
class Violation:
    """One place where a rule is broken, and what to do about it."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Source:
    """One file; `path` is relative to the folder that is checked."""

    path: Path
    text: str

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, str(self.path))

    def within(self, *folders: str) -> bool:
        """Whether the file is in one of the folders."""
        return self.path.parts[0] in folders

    def calls(self) -> Iterator[tuple[ast.Call, tuple[ast.AST, ...]]]:
        """Every call, with what encloses it, outermost first."""
        yield from ((node, around) for node, around in _walk(self.tree, ()) if isinstance(node, ast.Call))

    def violation(self, node: ast.stmt | ast.expr, text: str) -> Violation:
        """The rule is broken where the node begins."""
        return Violation(self.path, node.lineno, text)


def writes_only_in_store(source: Source) -> Iterator[Violation]:
    """Only `app/store.py` writes the agents collection: there the version is in every filter."""
    if not source.within("app", "models") or source.path == Path("app/store.py"):
        return
    aliases = set(_aliases(source.tree))
    for call, _ in source.calls():
        if WRITES.fullmatch(_method(call)) and _is_agents(_receiver(call), aliases):
            yield source.violation(call, f"{_method(call)} writes agents: only app/store.py does")


def queries_have_a_scope(source: Source) -> Iterator[Violation]:
    """Every query sees the caller's scope, or says why it needs none."""
    if not source.within("app"):
        return
    for call, around in source.calls():
        if _is_query(call) and not _sees_scope(call, around) and not _excused(source, call):
            yield source.violation(
                call, f"{_method(call)} without a scope: pass one, or say why not with '# unscoped: <reason>'"
            )


def nothing_is_written_whole(source: Source) -> Iterator[Violation]:
    """No document is saved or replaced as a whole; writes name the fields that they change."""
    if not source.within("app", "models"):
        return
    for call, around in source.calls():
        if WHOLE.fullmatch(_method(call)) or _replaces_document(call, around):
            yield source.violation(call, f"{_method(call)} writes a whole document: $set the fields that change")


def names_tell_something(source: Source) -> Iterator[Violation]:
    """No module or class is called after nothing in particular."""
    for part in source.path.with_suffix("").parts:
        if word := _empty_word(part):
            yield Violation(source.path, 1, f"'{part}' tells nothing ('{word}'): name it after what it is")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef) and (word := _empty_word(node.name)):
            yield source.violation(node, f"'{node.name}' tells nothing ('{word}'): name it after what it is")


LINTS: tuple[Callable[[Source], Iterator[Violation]], ...] = (
    writes_only_in_store,
    queries_have_a_scope,
    nothing_is_written_whole,
    names_tell_something,
)
CHECKED = ("app", "models", "scripts", "tests")


def violations(folder: Path) -> list[Violation]:
    """All violations of all lints in the folder's sources, in the order of files and lines."""
    files = (path for name in CHECKED for path in (folder / name).rglob("*.py"))
    sources = (Source(path.relative_to(folder), path.read_text(encoding="utf-8")) for path in files)
    return sorted({found for source in sources for lint in LINTS for found in lint(source)})


def main() -> int:
    """Print what is wrong; 1 when anything is."""
    found = violations(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
    for violation in found:
        print(violation)
    return 1 if found else 0


def _walk(node: ast.AST, around: tuple[ast.AST, ...]) -> Iterator[tuple[ast.AST, tuple[ast.AST, ...]]]:
    for child in ast.iter_child_nodes(node):
        yield child, (*around, node)
        yield from _walk(child, (*around, node))


def _method(call: ast.Call) -> str:
    """The last name of what is called: `update_one` of `mongo.agents.update_one(…)`."""
    match call.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def _receiver(call: ast.Call) -> ast.expr | None:
    return call.func.value if isinstance(call.func, ast.Attribute) else None


def _is_agents(node: ast.expr | None, aliases: set[str]) -> bool:
    """Whether an expression is the agents collection in one of its forms, also re-optioned or taken by its name."""
    match node:
        case ast.Name(id=name):
            return _means_agents(name) or name in aliases
        case ast.Attribute(attr=name):
            return _means_agents(name)
        case ast.Subscript(slice=ast.Constant(value=str(name))):
            return _means_agents(name)
        case ast.Call(func=ast.Attribute(attr="get_collection"), args=[ast.Constant(value=str(name)), *_]):
            return _means_agents(name)
        case ast.Call(func=ast.Attribute(attr="with_options", value=inner)):
            return _is_agents(inner, aliases)
    return False


def _means_agents(name: str) -> bool:
    return name.strip("_").split("_")[0] == "agents"


def _aliases(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if _is_agents(value, set()):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if _is_agents(value, set()):
                yield name


def _is_query(call: ast.Call) -> bool:
    """`find` of text, known by its literal argument, is none."""
    if not isinstance(call.func, ast.Attribute) or not QUERIES.fullmatch(_method(call)):
        return False
    searches_text = bool(call.args) and isinstance(call.args[0], ast.Constant) and _method(call) == "find"
    return not searches_text


def _sees_scope(call: ast.Call, around: tuple[ast.AST, ...]) -> bool:
    given = (node for part in (*call.args, *call.keywords) for node in ast.walk(part))
    return any(map(_names_scope, given)) or any(map(_takes_scope, around))


def _names_scope(node: ast.AST) -> bool:
    match node:
        case ast.Name(id="scope") | ast.Attribute(attr="scope"):
            return True
    return False


def _takes_scope(node: ast.AST) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return False
    given = node.args
    return any(parameter.arg == "scope" for parameter in (*given.posonlyargs, *given.args, *given.kwonlyargs))


def _excused(source: Source, call: ast.Call) -> bool:
    last = call.func.end_lineno or call.lineno
    above = max(call.lineno - 2, 0)
    return any(UNSCOPED.search(line) for line in source.lines[above:last])


def _replaces_document(call: ast.Call, around: tuple[ast.AST, ...]) -> bool:
    if _method(call) != "replace" or not isinstance(call.func, ast.Attribute):
        return False
    awaited = isinstance(around[-1], ast.Await)
    given = {keyword.arg for keyword in call.keywords}
    return awaited or (not call.args and given <= BEANIE_REPLACE)


def _empty_word(name: str) -> str | None:
    """The word of a name, in snake or camel case, that tells nothing; in the plural too."""
    words = (word.lower() for word in _WORDS.findall(name))
    return next((word for word in words if word in EMPTY_NAMES or word.removesuffix("s") in EMPTY_NAMES), None)


if __name__ == "__main__":
    sys.exit(main())
