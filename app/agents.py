"""Agents: every verb of the contract about one agent, its steps, HEAD and branches, as one call.

Here a request meets the pure moves of `models`: ids are made, secrets sealed, sizes measured, and the store asked
to commit. Nothing here knows HTTP, and nothing writes but through the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.clock import Clock
from app.config import Settings
from app.drafts import Drafts
from app.lanes import Committed, Move, Terms
from app.reads import Freshness, Reads, Seen
from app.segments import Gone, Segments
from app.store import Store
from app.vault import Vault
from models import profile, results, tree, turn
from models.agent import MAIN, AgentRecord, create, delete
from models.blob import Blobs, packed
from models.change import Change, Stamp
from models.errors import Forbidden, HoldfastError, InvalidRequest, Unavailable
from models.execution import states_of
from models.ids import ROOT, WORKSPACE, check_branch, check_id, check_name
from models.packing import references
from models.sealing import sealed_at_birth
from models.settings import with_defaults
from models.snapshot import Snapshot, draft_of
from models.tenant import Scope

SUMMARY_FIELDS = tuple(
    name
    for name in AgentRecord.model_fields
    if name not in ("id", "steps", "results", "sealed", "ops", "size_bytes", "history")
)


@dataclass(frozen=True, slots=True)
class AgentQuery:
    """Filters of the list of agents; None lets everything pass, `archived` is False unless asked for."""

    state: str | None = None
    status: str | None = None
    pool: str | None = None
    runner: str | None = None
    label: str | None = None
    archived: bool = False

    def document(self) -> dict[str, Any]:
        """As a database query."""
        equal = {"state": self.state, "pool": self.pool, "runner": self.runner, "label_terms": self.label}
        query: dict[str, Any] = {name: value for name, value in equal.items() if value is not None}
        if self.status is not None:
            states = [state.value for state in states_of(self.status)]
            query["state"] = {"$in": [state for state in states if self.state in (None, state)]}
        return {**query, "archived": self.archived}


class Agents:
    """The agents of all tenants; every call names the scope that it acts in.

    Writes raise what the store's `commit` raises, and what their move raises; reads raise NotFound and Unavailable.
    """

    def __init__(
        self,
        store: Store,
        reads: Reads,
        segments: Segments,
        vault: Vault,
        drafts: Drafts,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self._store = store
        self._reads = reads
        self._segments = segments
        self._vault = vault
        self._drafts = drafts
        self._settings = settings
        self._clock = clock

    async def get(self, scope: Scope, agent: str, freshness: Freshness) -> Seen:
        """One agent with all its steps."""
        return await self._reads.agent(scope, agent, freshness)

    async def list(self, scope: Scope, query: AgentQuery, *, after: str | None, limit: int) -> list[AgentRecord]:
        """Up to `limit` agents without steps and results, in the order of their ids, from after the given one on."""
        found = await self._store.page(scope, query.document(), after=after, limit=limit, fields=SUMMARY_FIELDS)
        return [AgentRecord.of(document) for document in found]

    async def create(
        self, scope: Scope, spec: Mapping[str, Any], terms: Terms, *, steps: Sequence[Mapping[str, Any]] = ()
    ) -> Committed:
        """A new agent from the fields of the contract, with steps in one commit. Raises Conflict, Forbidden."""
        agent = self._id_for(spec.get("id"))
        key = scope.agent_key(agent)
        fields = {name: value for name, value in spec.items() if name not in _HANDLED}
        blobs: Blobs = {}
        draft = AgentRecord(
            id=key,
            tenant=scope.tenant,
            branch=MAIN,
            **fields,
            owner=_owner_for(scope, spec.get("owner")),
            settings=with_defaults(spec.get("settings") or {}),
            delegate=self._sealed(_unmasked(spec.get("delegate")), key),
            label_terms=profile.label_terms(spec.get("labels") or {}),
            results=self._workspace_at_root(spec, blobs),
        )
        drafts = [self._drafts.of(step) for step in steps]
        return await self._create(scope, agent, draft, terms, blobs, drafts=drafts)

    async def take_in(self, scope: Scope, snapshot: Snapshot, terms: Terms) -> Committed:
        """A new agent from an export, under its id or a new one. Raises Conflict and what `draft` raises."""
        draft, blobs = self.draft(scope, snapshot)
        return await self._create(scope, draft.name_in_tenant, draft, terms, blobs)

    def draft(self, scope: Scope, snapshot: Snapshot) -> tuple[AgentRecord, Blobs]:
        """The agent that an export makes and the blobs it refers to, not stored.

        Raises Forbidden, InvalidRequest, TooLarge.
        """
        for step in snapshot.steps:
            self._drafts.require_fitting(step.given())
        blobs: Blobs = {}
        key = scope.agent_key(self._id_for(snapshot.id))
        draft = draft_of(snapshot, key, scope.tenant, blobs, inline=self._settings.inline_bytes)
        return draft.model_copy(update={"owner": _owner_for(scope, draft.owner)}), blobs

    async def fork(self, scope: Scope, agent: str, terms: Terms, *, at: str | None, name: str | None) -> Committed:
        """A new agent that shares the path up to `at`. Raises NotFound; the guard is about the forked agent."""
        began = self._clock.monotonic()
        source = (await self._reads.agent(scope, agent, Freshness(strong=True))).record
        new = self._clock.new_id()
        guard = terms.guard_of(scope)
        draft = await self._forked(source, scope.agent_key(new), at, name)

        def move(previous: AgentRecord, stamp: Stamp) -> Change:
            guard.check(source)
            if isinstance(draft, HoldfastError):
                raise draft
            blobs = dict.fromkeys(references(draft.steps, draft.results))
            segments = dict.fromkeys(kept.id for kept in draft.descriptors)
            return create(previous, draft, stamp, step_version=1, blobs=blobs, segments=segments)

        spent = self._clock.monotonic() - began
        return await self._store.commit(scope, new, move, once=terms.once, creates=True, spent=spent)

    async def delete(self, scope: Scope, agent: str, terms: Terms) -> Committed:
        """Leave a tombstone."""
        return await self._commit(scope, agent, delete, terms)

    async def patch(self, scope: Scope, agent: str, patch: Mapping[str, Any], terms: Terms) -> Committed:
        """Merge name, model, labels, placement and lifetimes."""
        return await self._commit(scope, agent, lambda record, at: profile.patch_profile(record, patch, at), terms)

    async def patch_settings(self, scope: Scope, agent: str, patch: Mapping[str, Any], terms: Terms) -> Committed:
        """Merge settings; answers them whole. Raises InvalidRequest for a wrong type of a known key."""
        return await self._commit(scope, agent, lambda record, at: profile.patch_settings(record, patch, at), terms)

    async def set_delegate(
        self, scope: Scope, agent: str, delegate: Mapping[str, Any] | None, terms: Terms
    ) -> Committed:
        """Say on whose behalf the agent acts; a token that comes back masked is the one that is there."""
        sealed = self._sealed(delegate, scope.agent_key(agent))

        def move(record: AgentRecord, at: Stamp) -> Change:
            kept = self._token_kept(record, delegate)
            return profile.set_delegate(record, sealed if kept is None or sealed is None else {**sealed, **kept}, at)

        return await self._commit(scope, agent, move, terms)

    async def put_workspace(self, scope: Scope, agent: str, workspace: Any, terms: Terms) -> Committed:
        """Bind a workspace to HEAD."""
        inline = self._settings.inline_bytes
        return await self._commit(
            scope, agent, lambda record, at: results.put_workspace(record, workspace, at, inline=inline), terms
        )

    async def put_result(
        self, scope: Scope, agent: str, key: str, step: str | None, result: Any, terms: Terms
    ) -> Committed:
        """Bind a result to a step, HEAD when None."""
        check_name(key, "a result's key")
        inline = self._settings.inline_bytes
        return await self._commit(
            scope, agent, lambda record, at: results.put_result(record, key, step, result, at, inline=inline), terms
        )

    async def append(
        self, scope: Scope, agent: str, steps: Sequence[Mapping[str, Any]], terms: Terms, *, advance_head: bool
    ) -> Committed:
        """Append steps, each below the one before; all or nothing. Raises TooLarge for a step over its limit."""
        drafts = [self._drafts.of(step) for step in steps]
        inline = self._settings.inline_bytes

        def move(record: AgentRecord, at: Stamp) -> Change:
            return turn.append(record, drafts, at, advance_head=advance_head, inline=inline)

        return await self._commit(scope, agent, move, terms)

    async def checkout(
        self, scope: Scope, agent: str, terms: Terms, *, step: str | None = None, branch: str | None = None
    ) -> Committed:
        """Move HEAD to a step or to a branch."""
        return await self._commit(
            scope, agent, lambda record, at: tree.checkout(record, at, step=step, branch=branch), terms
        )

    async def set_branch(self, scope: Scope, agent: str, name: str, step: str, terms: Terms) -> Committed:
        """Point a branch at a step."""
        check_branch(name)
        return await self._commit(scope, agent, lambda record, at: tree.set_branch(record, name, step, at), terms)

    async def delete_branch(self, scope: Scope, agent: str, name: str, terms: Terms) -> Committed:
        """Forget a branch."""
        return await self._commit(scope, agent, lambda record, at: tree.delete_branch(record, name, at), terms)

    async def revert(self, scope: Scope, agent: str, before: str, terms: Terms) -> Committed:
        """Put HEAD before a turn."""
        return await self._commit(scope, agent, lambda record, at: tree.revert(record, before, at), terms)

    async def redo(self, scope: Scope, agent: str, terms: Terms) -> Committed:
        """Take the latest revert back."""
        return await self._commit(scope, agent, tree.redo, terms)

    async def clear(self, scope: Scope, agent: str, terms: Terms) -> Committed:
        """Leave only the root."""
        return await self._commit(scope, agent, tree.clear, terms)

    async def _commit(self, scope: Scope, agent: str, move: Move, terms: Terms) -> Committed:
        return await self._store.commit(scope, agent, move, guard=terms.guard_of(scope), once=terms.once)

    async def _create(
        self,
        scope: Scope,
        agent: str,
        draft: AgentRecord,
        terms: Terms,
        blobs: Blobs,
        *,
        drafts: Sequence[tree.Draft] = (),
    ) -> Committed:
        def move(previous: AgentRecord, stamp: Stamp) -> Change:
            if not drafts:
                created = create(previous, draft, stamp, blobs=blobs)
            else:
                filled = tree.append(draft, drafts, stamp, inline=self._settings.inline_bytes)
                created = create(previous, filled.record, stamp, blobs={**blobs, **filled.blobs})
            return sealed_at_birth(created, self._settings.seal_over_bytes)

        return await self._store.commit(scope, agent, move, guard=terms.guard_of(scope), once=terms.once, creates=True)

    async def _forked(
        self, source: AgentRecord, key: str, at: str | None, name: str | None
    ) -> AgentRecord | HoldfastError:
        """The draft of a fork, or why there is none: for who asks a second time the first answer stands."""
        try:
            return await self._segments.asked(source, lambda known: tree.fork(known, key, at, name))
        except Gone:
            return Unavailable("The agent was changed meanwhile; nothing was written. Try again.", written=False)
        except HoldfastError as error:
            return error

    def _workspace_at_root(self, spec: Mapping[str, Any], blobs: Blobs) -> dict[str, dict[str, Any]]:
        if "workspace" not in spec:
            return {}
        return {ROOT: {WORKSPACE: packed(spec["workspace"], self._settings.inline_bytes, blobs)}}

    def _id_for(self, chosen: str | None) -> str:
        if chosen in RESERVED:
            raise InvalidRequest(f"'{chosen}' names a path of the API: choose another id.")
        return self._clock.new_id() if chosen is None else check_id(chosen)

    def _token_kept(self, record: AgentRecord, delegate: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The sealed token that is there, where the sent one is the same or masked. Raises InvalidRequest."""
        sent = (delegate or {}).get("token")
        kept = (record.delegate or {}).get("token")
        if sent == profile.MASK and kept is None:
            raise InvalidRequest("There is no token to keep: send it in the clear once, it is stored sealed.")
        if sent is None or kept is None:
            return None
        return {"token": kept} if sent == profile.MASK or self._vault.holds(kept, sent, record.id) else None

    def _sealed(self, delegate: Mapping[str, Any] | None, key: str) -> dict[str, Any] | None:
        if delegate is None:
            return None
        token = delegate.get("token")
        if token is None or token == profile.MASK:
            return {name: value for name, value in delegate.items() if name != "token" or value is not None}
        return {**delegate, "token": self._vault.seal(token, key)}


RESERVED = frozenset({"import"})
"""Ids that would hide a route of their own."""

_HANDLED = frozenset({"id", "owner", "settings", "delegate", "workspace"})


def _owner_for(scope: Scope, owner: str | None) -> str | None:
    if scope.owner is not None and owner not in (None, scope.owner):
        raise Forbidden(f"This key makes only agents whose owner is '{scope.owner}'.")
    return owner if scope.owner is None else scope.owner


def _unmasked(delegate: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if delegate is not None and delegate.get("token") == profile.MASK:
        raise InvalidRequest(f"'{profile.MASK}' stands for a token that is there already: send the token itself.")
    return delegate
