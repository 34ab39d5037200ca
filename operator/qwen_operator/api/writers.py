"""Who set spec.replicas, and when. The API server records it in metadata.managedFields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_operator.objects import mapping, members


def replicas_writer(metadata: Mapping[str, Any]) -> tuple[str, str] | None:
    """(field manager, RFC 3339 time) of the last writer of spec.replicas; None if nobody owns the field.

    The time is when the manager last changed any field that it owns, because the API server records nothing finer.
    If there are several owners (server-side apply with equal values), the last writer counts.
    """
    owners = [(str(entry.get("time") or ""), str(entry.get("manager") or "unknown")) for entry in kept_fields(metadata)]
    if not owners:
        return None
    time, manager = max(owners)
    return manager, time


def kept_fields(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of metadata.managedFields that own spec.replicas, without the other fields that they own.

    The rest of managedFields is large, changes with every write, and nothing reads it.
    """
    owning = [
        entry for entry in members(metadata, "managedFields") if "f:replicas" in mapping(entry, "fieldsV1", "f:spec")
    ]
    return [
        {
            **{key: entry[key] for key in ("manager", "operation", "subresource", "time") if key in entry},
            "fieldsV1": {"f:spec": {"f:replicas": {}}},
        }
        for entry in owning
    ]
