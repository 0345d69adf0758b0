"""A drill of the worst day: back up under load, lose the database, restore, and prove that all of it is there again.

A database and a replica in a temporary folder, two tenants with something of everything, and writers that go on while
the backup is taken. Then the replica is killed and the database's files are deleted; only the secret key is kept, as it
has to be. What the backup is restored into is held against it document by document, against what was acknowledged
before it, and against what each agent was, by its own export, at the very version that came back. Nothing is left
behind, also after Ctrl-C.

Usage: python -m scripts.drill [--agents N]. Exit code 0 only when nothing differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count, cycle
from pathlib import Path
from typing import Any

import httpx
from bson.raw_bson import RawBSONDocument
from rich.progress import track
from rich.text import Text

from app.archive import ArchiveProblem, reading
from app.vault import KEY_FILE
from models.act import COPIED
from models.archive import End, Sum, Totals
from scripts.stage import (
    ANSWER_SECONDS,
    BrokenPromise,
    House,
    Replica,
    Story,
    finish_undisturbed,
    perform,
    wait_for,
)

TENANTS = ("acme", "rivals")
POOL = "drill"
TOKEN = "what the delegate's token reads"  # noqa: S105 - shown to be there again
LOAD = 20
"""Writes of each tenant's before the backup begins."""

SETTINGS = {
    "seal_bytes": 4096,
    "inline_bytes": 2048,
    "embedder": "lexical",
    "log_level": "warning",
}
"""So that little agents have everything that large ones have."""

Json = dict[str, Any]


class Tenant:
    """A tenant's caller, and what it knows of its agents: what was acknowledged, and how each was at each version."""

    def __init__(self, name: str, key: str, url: str) -> None:
        self.name = name
        self.acknowledged: list[tuple[str, str]] = []
        """Agents and their steps."""
        self.exports: dict[tuple[str, int], str] = {}
        """The digest of each agent's export, by version."""
        self._key = key
        self.move_to(url)

    def move_to(self, url: str) -> None:
        """Call another replica from now on."""
        headers = {"Authorization": f"Bearer {self._key}"}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=ANSWER_SECONDS, trust_env=False)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Json:
        """What is answered. Raises BrokenPromise for a refusal."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self._client.request(method, f"/v1{path}", json=body, headers=sent)
        if not answer.is_success:
            raise BrokenPromise(
                f"{method} {path} of {self.name} was answered {answer.status_code}: {answer.text[:200]}"
            )
        found: Json = answer.json() if answer.content else {}
        return found

    def export(self, agent: str) -> tuple[int, str, set[str]]:
        """An agent's version now, the digest of its export at that, and its steps. Nobody else writes it meanwhile."""
        version = self.ask("GET", f"/agents/{agent}?steps=none", Cache_Control="no-cache")["version"]
        found = self.ask("GET", f"/agents/{agent}/export")
        digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
        return version, digest, {step["id"] for step in found["steps"]}

    def remember(self, agent: str) -> None:
        """How the agent is now."""
        version, digest, _ = self.export(agent)
        self.exports[agent, version] = digest

    def append(self, agent: str, step: str, content: str, **headers: str) -> None:
        """Append a step, and note that it was acknowledged."""
        self.ask("POST", f"/agents/{agent}/steps", {"id": step, "role": "user", "content": content}, **headers)
        self.acknowledged.append((agent, step))

    def close(self) -> None:
        self._client.close()


@dataclass
class Load:
    """Writes to a tenant's agents, one after another, until it is over; remembers each agent after each write."""

    tenant: Tenant
    agents: Sequence[str]
    writes: int = 0
    broken: list[Exception] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Write nothing more."""
        self._over.set()

    def join(self) -> None:
        """Return when the last write is remembered. Raises BrokenPromise when one was refused."""
        if self._thread is not None:
            self._thread.join()
        if self.broken:
            raise BrokenPromise(f"The load broke down: {self.broken[0]}")

    def _go_on(self) -> None:
        try:
            for number, agent in zip(count(), cycle(self.agents), strict=False):
                if self._over.is_set():
                    return
                self._write(agent, number)
                self.tenant.remember(agent)
                self.writes += 1
        except (BrokenPromise, httpx.HTTPError) as error:
            self.broken.append(error)

    def _write(self, agent: str, number: int) -> None:
        kind = number % 5
        if kind == 3:
            self.tenant.ask("PUT", f"/agents/{agent}/results/load", {"result": "r" * (number % 3000)})
        elif kind == 4:
            self.tenant.ask("PATCH", f"/agents/{agent}/settings", {"load": number})
        else:
            keyed = {"Idempotency_Key": f"{agent}-{number}"} if kind == 2 else {}
            self.tenant.append(agent, f"load-{number}", f"{number} " * (2000 if kind else 100), **keyed)


def main() -> int:
    """Play the drill; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.drill", description="Backup, disaster, restore, proof.")
    parser.add_argument("--agents", type=int, default=12, help="of each of the two tenants (default: 12)")
    agents = parser.parse_args().agents
    return perform(lambda story: _play(story, max(1, agents)))


def _play(story: Story, agents: int) -> None:
    story.console.print(Text("Holdfast: the worst day, rehearsed", style="bold cyan"))
    with ExitStack() as closing:
        folder = Path(tempfile.mkdtemp(prefix="holdfast-drill-"))
        closing.callback(shutil.rmtree, folder, ignore_errors=True)
        path = folder / "monday.holdfast"
        before = House(folder / "before", story, **SETTINGS)
        after = House(folder / "after", story, **SETTINGS)
        for house in (before, after):
            (house.folder / "data").mkdir(mode=0o700, parents=True)
        tenants, took = _back_up(story, before, path, agents)
        _lose(story, before, after)
        story.chapter("What the backup holds is restored")
        with after.database():
            closing.callback(finish_undisturbed)
            facts = _prove(story, after, path, tenants)
    story.close([*facts, ("the backup took", f"{took:.1f} s")])


def _back_up(story: Story, house: House, path: Path, agents: int) -> tuple[list[Tenant], float]:
    """Everything before the disaster: the tenants with what they know, and what the backup took."""
    story.chapter(f"A database, a replica, and two tenants with {agents} agents each")
    with ExitStack() as closing:
        closing.enter_context(house.database())
        replica = Replica("A", house)
        closing.callback(replica.close)
        keys = [house.run("keys", "create", "--tenant", name, *_rights())[-1] for name in TENANTS]
        replica.start()
        tenants = [Tenant(name, key, replica.url) for name, key in zip(TENANTS, keys, strict=True)]
        named = [f"agent-{number}" for number in range(agents)]
        for tenant in tenants:
            closing.callback(tenant.close)
            for agent in track(named, f"   {tenant.name}", console=story.console, transient=True):
                _make(tenant, agent)
            _make_the_rest(tenant, named[0])
        story.chapter("The backup, while both tenants go on writing")
        took = _under_load(story, house, path, [Load(tenant, named) for tenant in tenants])
        replica.kill()
    return tenants, took


def _under_load(story: Story, house: House, path: Path, loads: Sequence[Load]) -> float:
    """Take the backup in the middle of the load; seconds that it took."""
    for load in loads:
        load.start()
    try:
        wait_for(
            lambda: all(load.writes >= LOAD or load.broken for load in loads),
            ANSWER_SECONDS * 4,
            "Nothing was written.",
        )
        earlier = [list(load.tenant.acknowledged) for load in loads]
        began, written = time.monotonic(), sum(load.writes for load in loads)
        house.run("backup", str(path))
        took, meanwhile = time.monotonic() - began, sum(load.writes for load in loads) - written
    finally:
        for load in loads:
            load.leave()
    for load, acknowledged in zip(loads, earlier, strict=True):
        load.join()
        load.tenant.acknowledged = acknowledged
    story.promise(
        f"{meanwhile} writes were acknowledged while the backup was taken.",
        kept=meanwhile > 0,
        otherwise="Nothing was written while the backup was taken, so it proves nothing.",
    )
    return took


def _rights() -> list[str]:
    return [word for right in ("read", "write", "runner") for word in ("--right", right)]


def _make(tenant: Tenant, agent: str) -> None:
    """An agent with a past: sealed steps, values stored apart, a side branch, a result, a workspace."""
    tenant.ask("POST", "/agents", {"id": agent, "workspace": {"of": agent}, "labels": {"tenant": tenant.name}})
    for number in range(8):
        tenant.append(agent, f"past-{number}", f"{tenant.name} {agent} {number} " * 60)
    tenant.append(agent, "apart", f"{tenant.name} " * 500)
    tenant.ask("PUT", f"/agents/{agent}/branches/side", {"step_id": "past-3"})
    tenant.ask("PUT", f"/agents/{agent}/results/verdict", {"result": {"score": len(agent)}})
    tenant.remember(agent)


def _make_the_rest(tenant: Tenant, agent: str) -> None:
    """A fork, a tombstone, one that a runner drives, one that waits with a delegate; a command, an episode."""
    fork = tenant.ask("POST", f"/agents/{agent}/fork", {"at": "past-5"})["id"]
    tenant.remember(fork)
    tenant.ask("POST", "/agents", {"id": "deleted"})
    tenant.ask("DELETE", "/agents/deleted")
    tenant.ask("POST", "/agents", {"id": "driven", "pool": POOL})
    tenant.ask("POST", "/runners", {"id": "runner", "pool": POOL, "platform": "local", "capacity": 1})
    tenant.ask("POST", "/runners/runner/claim", {"max": 1})
    tenant.ask("POST", "/agents", {"id": "sealed", "pool": f"{POOL}-2", "delegate": {"user": {}, "token": TOKEN}})
    tenant.ask("POST", f"/agents/{agent}/commands", {"action": "custom", "payload": {"of": tenant.name}})
    tenant.ask("POST", "/episodes", {"agent_id": agent, "task": "drill", "input": tenant.name, "output": "ok"})


def _lose(story: Story, before: House, after: House) -> None:
    story.chapter("Disaster")
    key = Path(before.environment["HOLDFAST_DATA"]) / KEY_FILE
    shutil.copy2(key, Path(after.environment["HOLDFAST_DATA"]) / KEY_FILE)
    shutil.rmtree(before.folder)
    story.tell("The replica is killed, and every file of the database is deleted. The secret key was kept elsewhere.")


def _prove(story: Story, house: House, path: Path, tenants: Sequence[Tenant]) -> list[tuple[str, str]]:
    house.run("restore", str(path), "--dry-run")
    began = time.monotonic()
    house.run("restore", str(path))
    took = time.monotonic() - began
    end = _prove_documents(story, house, path)
    house.run("doctor", "--fsck")
    story.promise("The restored database is consistent: fsck finds nothing.", kept=True, otherwise="")
    replica = Replica("B", house)
    try:
        replica.start()
        for tenant in tenants:
            tenant.move_to(replica.url)
        facts = _prove_agents(story, tenants)
        _prove_secrets(story, replica, tenants)
    finally:
        replica.close()
        for tenant in tenants:
            tenant.close()
    return [
        ("documents restored", f"{end.documents}"),
        ("of bytes, in a file of", f"{end.bytes}, {path.stat().st_size}"),
        *facts,
        ("the restore took", f"{took:.1f} s"),
    ]


def _prove_documents(story: Story, house: House, path: Path) -> End:
    """Back up what was restored: of every collection the same documents, byte for byte, so the same digests.

    But for what the log tells of the backup and the restore themselves.
    """
    again = path.with_name("again.holdfast")
    house.run("backup", str(again))
    (first, before), (_, after) = _read(path), _read(again)
    differing = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    story.promise(
        f"All {first.documents} documents of {len(first.collections)} collections are there again, byte for byte.",
        kept=not differing,
        otherwise=f"What was restored differs from the backup in {', '.join(differing)}.",
    )
    return first


def _read(path: Path) -> tuple[End, dict[str, Totals]]:
    """The end of a backup, and what each collection in it comes to, without what tells of backups and restores."""
    sums: dict[str, Sum] = {}
    try:
        with reading(path) as archive:
            for batch in archive.batches():
                kept = [raw for raw in batch.documents if not _tells_of_copies(RawBSONDocument(raw))]
                sums.setdefault(batch.collection, Sum()).add(len(kept), b"".join(kept))
            return archive.end, {name: each.totals for name, each in sums.items()}
    except ArchiveProblem as problem:
        raise BrokenPromise(str(problem)) from problem


def _tells_of_copies(document: RawBSONDocument) -> bool:
    return document.get("kind") == COPIED or document.get("kinds") == [COPIED]


def _prove_agents(story: Story, tenants: Sequence[Tenant]) -> list[tuple[str, str]]:
    """Every agent is what it was at the version that came back, and nothing that was acknowledged before is missing."""
    lost: list[str] = []
    other: list[str] = []
    compared = acknowledged = 0
    for tenant in tenants:
        for agent in track(_agents_of(tenant.exports), f"   {tenant.name}", console=story.console, transient=True):
            version, digest, steps = tenant.export(agent)
            compared += 1
            if tenant.exports.get((agent, version)) != digest:
                other.append(f"{tenant.name}:{agent}")
            owed = {step for whose, step in tenant.acknowledged if whose == agent}
            acknowledged += len(owed)
            lost += [f"{tenant.name}:{agent}:{step}" for step in sorted(owed - steps)]
    story.promise(
        f"Steps that were acknowledged before the backup and are missing: 0 of {acknowledged}.",
        kept=not lost,
        otherwise=f"Acknowledged before the backup, and lost: {lost[:5]}.",
    )
    story.promise(
        f"Each of {compared} agents exports what it did at that very version, before the disaster.",
        kept=not other,
        otherwise=f"These agents are not what they were at their version: {other[:5]}.",
    )
    return [("agents compared by their exports", f"{compared}"), ("acknowledged steps found", f"{acknowledged}")]


def _agents_of(exports: Mapping[tuple[str, int], str]) -> list[str]:
    return sorted({agent for agent, _ in exports})


def _prove_secrets(story: Story, replica: Replica, tenants: Iterable[Tenant]) -> None:
    """Keys are asked for and let in; what was deleted stays so; tokens of delegates open."""
    opened = []
    for tenant in tenants:
        runner = {"id": "rescuer", "pool": f"{POOL}-2", "platform": "local", "capacity": 1}
        tenant.ask("POST", "/runners", runner)
        (claim,) = tenant.ask("POST", "/runners/rescuer/claim", {"max": 1})["claims"]
        opened.append(claim.get("delegate", {}).get("token"))
    story.promise(
        "The tenants' keys let them in, and the delegates' tokens open with the secret key that was kept.",
        kept=set(opened) == {TOKEN},
        otherwise="A delegate's token can't be opened any more.",
    )
    replica.expect(replica.client.get("/v1/agents"), 401)
    story.promise("Without a key nothing is answered.", kept=True, otherwise="")


if __name__ == "__main__":
    sys.exit(main())
