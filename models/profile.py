"""The moves of what an agent is beside its steps: name, placement, labels, settings, delegate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.agent import AgentRecord
from models.change import AGENT, SETTINGS, Change, Stamp
from models.json import merge_patch, same
from models.settings import check_settings

MASK = "***"


def patch_profile(record: AgentRecord, patch: Mapping[str, Any], stamp: Stamp) -> Change:
    """Merge name, model, labels and placement; null takes a field (or a label) away."""
    patched = {name: merge_patch(getattr(record, name), value) for name, value in patch.items()}
    if "labels" in patched:
        patched["labels"] = patched["labels"] or {}
    fields = {name: value for name, value in patched.items() if not same(value, getattr(record, name))}
    if not fields:
        return record.unchanged()
    if "labels" in fields:
        fields["label_terms"] = label_terms(fields["labels"])
    return record.changed(stamp, (AGENT,), fields)


def patch_settings(record: AgentRecord, patch: Mapping[str, Any], stamp: Stamp) -> Change:
    """RFC 7396 merge into the settings. Raises InvalidRequest when a known key gets a wrong type."""
    settings = merge_patch(record.settings, patch)
    check_settings(settings)
    if same(settings, record.settings):
        return record.unchanged(settings)
    return record.changed(stamp, (SETTINGS,), {"settings": settings}, answer=settings)


def set_delegate(record: AgentRecord, delegate: Mapping[str, Any] | None, stamp: Stamp) -> Change:
    """Set (token already sealed) or take away on whose behalf the agent acts."""
    if same(delegate, record.delegate):
        return record.unchanged()
    return record.changed(stamp, (AGENT,), {"delegate": None if delegate is None else dict(delegate)})


def masked(delegate: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The delegate as it may be shown: a token is there or not, never what it is."""
    if delegate is None:
        return None
    return {**delegate, "token": MASK} if "token" in delegate else dict(delegate)


def label_terms(labels: Mapping[str, str]) -> list[str]:
    """What the label filter looks up."""
    return [f"{key}:{value}" for key, value in labels.items()]
