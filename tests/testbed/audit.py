"""Reads the API server's audit log: which user sent which request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_operator.objects import mapping

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
    """The pod that the token of a service account was issued for."""
    time: str = ""
    """The time of the answer, RFC 3339."""
    message: str = ""
    """The API server's message, if it rejected the request."""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource} {self.namespace}/{self.name} -> {self.code}"


class AuditLog:
    """A position in the audit log. It starts at the log's end, or at its beginning with `whole`. `read()` returns the
    requests since then, and moves the position."""

    def __init__(self, path: Path, *, whole: bool = False) -> None:
        self._path = path
        self._offset = 0 if whole else path.stat().st_size

    def read(self) -> list[Request]:
        with self._path.open("rb") as log:
            log.seek(self._offset)
            # The last line may be incomplete. The next call reads it.
            data = log.read()
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        return list(_requests(data))

    def writes(self, user: str, *namespaces: str) -> list[Request]:
        """Writes of one user in these namespaces since the last call, without Leases, which a leader always renews."""
        mine = [r for r in self.read() if r.user == user and r.namespace in namespaces]
        return [r for r in mine if r.verb in WRITES and r.resource != "leases"]


def _requests(data: bytes) -> Iterator[Request]:
    for line in data.splitlines():
        event: dict[str, Any] = json.loads(line)
        target, status = mapping(event, "objectRef"), mapping(event, "responseStatus")
        parts = (target.get("resource", ""), target.get("subresource", ""))
        yield Request(
            user=event["user"].get("username", ""),
            verb=event["verb"],
            resource="/".join(part for part in parts if part),
            namespace=target.get("namespace", ""),
            name=target.get("name", ""),
            code=status.get("code", 0),
            time=event.get("stageTimestamp", ""),
            message=status.get("message", ""),
            pod=" ".join(mapping(event, "user", "extra").get("authentication.kubernetes.io/pod-name", ())),
        )
