"""Who set spec.replicas, and when: the API server notes it in metadata.managedFields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def replicas_writer(metadata: Mapping[str, Any]) -> tuple[str, str] | None:
    """(field manager, RFC 3339 time) of the last writer of spec.replicas; None where nobody owns the field.

    The time is that of the manager's last change of any field that it owns: the API server keeps no finer one.
    Of several owners (server-side apply with equal values) the one that wrote last counts.
    """
    owners = [(str(entry.get("time") or ""), str(entry.get("manager") or "unknown")) for entry in kept_fields(metadata)]
    if not owners:
        return None
    time, manager = max(owners)
    return manager, time


def kept_fields(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of metadata.managedFields that own spec.replicas, without the other fields they own.

    The rest of managedFields is large and changes with every write, which is no news to anybody.
    """
    entries = metadata.get("managedFields")
    found = []
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, Mapping) and _owns_replicas(entry.get("fieldsV1")):
            kept = {key: entry[key] for key in ("manager", "operation", "subresource", "time") if key in entry}
            found.append({**kept, "fieldsV1": {"f:spec": {"f:replicas": {}}}})
    return found


def _owns_replicas(fields: Any) -> bool:
    spec = fields.get("f:spec") if isinstance(fields, Mapping) else None
    return isinstance(spec, Mapping) and "f:replicas" in spec
