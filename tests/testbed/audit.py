"""What the API server's audit log says about who wrote what."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclass(frozen=True, slots=True)
class Request:
    """One request that the API server has answered."""

    user: str
    verb: str
    resource: str
    namespace: str
    name: str
    code: int
    pod: str = ""
    """Of a service account's user: the pod whose token it was."""
    time: str = ""
    """When it was answered, RFC 3339."""
    message: str = ""
    """What the API server said to a refused request."""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource} {self.namespace}/{self.name} -> {self.code}"


class AuditLog:
    """A position in the audit log: `AuditLog(path)` stands at its end, with `whole` at its beginning. `read()` gives
    what came since, and moves on."""

    def __init__(self, path: Path, *, whole: bool = False) -> None:
        self._path = path
        self._offset = 0 if whole else path.stat().st_size

    def read(self) -> list[Request]:
        with self._path.open("rb") as log:
            log.seek(self._offset)
            # The last line may be half written: it is left for the next call.
            data = log.read()
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        return list(_requests(data))

    def writes(self, user: str, *namespaces: str) -> list[Request]:
        """Writes of one user in these namespaces since the last call.

        Leases, which a leader renews by its nature, are left out.
        """
        mine = [r for r in self.read() if r.user == user and r.namespace in namespaces]
        return [r for r in mine if r.verb in WRITES and r.resource != "leases"]


def _requests(data: bytes) -> Iterator[Request]:
    for line in data.splitlines():
        event: dict[str, Any] = json.loads(line)
        target = event.get("objectRef") or {}
        parts = (target.get("resource", ""), target.get("subresource", ""))
        yield Request(
            user=event["user"].get("username", ""),
            verb=event["verb"],
            resource="/".join(part for part in parts if part),
            namespace=target.get("namespace", ""),
            name=target.get("name", ""),
            code=(event.get("responseStatus") or {}).get("code", 0),
            time=event.get("stageTimestamp", ""),
            message=(event.get("responseStatus") or {}).get("message", ""),
            pod=" ".join((event["user"].get("extra") or {}).get("authentication.kubernetes.io/pod-name", ())),
        )
