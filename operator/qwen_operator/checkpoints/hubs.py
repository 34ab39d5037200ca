"""Model hubs: their names and addresses, queries to them and the answers. No I/O: `hubs.client` sends the queries."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from urllib.parse import urlsplit

from qwen_operator.checkpoints.facts import Checkpoint

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)


class Hub(StrEnum):
    """The supported hubs. The values are the schemes of `spec.source.uri`."""

    HUGGING_FACE = "hf"
    MODELSCOPE = "modelscope"


ADDRESSES = {Hub.HUGGING_FACE: "https://huggingface.co", Hub.MODELSCOPE: "https://www.modelscope.cn"}
TOKEN_VARIABLE = "QWEN_HUB_TOKEN"
"""The variable with the token of a private repository, in our own containers."""
TERMS_CURE = (
    "accept its terms on the hub's page, and name a Secret with a token of that account in spec.source.secretRef"
)
"""What to do about a gated repository without a token."""
DEFAULT_REVISIONS = {Hub.HUGGING_FACE: "main", Hub.MODELSCOPE: "master"}


class HubReason(StrEnum):
    """Why a repository could not be read.

    OFFLINE: the hub gave no answer. UNAVAILABLE: it answered that it cannot serve the request at the moment. GATED: it
    gives the files only to accounts that accepted the terms of the repository.
    """

    NOT_FOUND = "NotFound"
    AUTH_REQUIRED = "AuthRequired"
    GATED = "GatedModel"
    OFFLINE = "Offline"
    UNAVAILABLE = "Unavailable"
    TOO_LARGE = "TooLarge"
    INVALID = "Invalid"
    UNKNOWN_ARCHITECTURE = "UnknownArchitecture"


class HubError(Exception):
    """A repository that could not be read. The text is one sentence without a full stop.

    `detail` is the text of the network error. It is separate because it changes from attempt to attempt.
    `pause_seconds`: the hub asks for so long a pause from all queries; 0 if it does not say how long, None if it asks
    for none. The text then names no repository, because other queries are told it too.
    """

    def __init__(self, reason: HubReason, message: str, detail: str = "", pause_seconds: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.detail = detail
        self.pause_seconds = pause_seconds

    @property
    def whole(self) -> str:
        """The text with the detail."""
        return f"{self}: {self.detail}" if self.detail else str(self)


@dataclass(frozen=True, slots=True)
class HubCheckpoint:
    """The facts of a repository at `commit`: the commit that the requested revision points to at the moment."""

    checkpoint: Checkpoint
    commit: str


@dataclass(frozen=True, slots=True)
class HubQuery:
    """A query to a hub for the facts of a repository at a revision, "" for its main branch.

    `file` is a GGUF file of the repository, "" for a checkpoint of safetensors files.
    """

    hub: Hub
    repository: str
    revision: str = ""
    file: str = ""

    def __str__(self) -> str:
        return f"{self.hub}://{self.repository}{f' at {self.revision}' if self.revision else ''}"


@dataclass(frozen=True, slots=True)
class HubAnswer:
    """The result of a query: either `checkpoint`, with its commit, or `reason` and `message`.

    `again` is the earliest time for the same query. `failures` is the number of failed attempts in a row.
    """

    query: HubQuery
    again: datetime
    checkpoint: Checkpoint | None = None
    reason: HubReason | None = None
    message: str = ""
    failures: int = 0


def is_repository(name: str) -> bool:
    """Whether this can be the name of a repository: ORGANISATION/NAME."""
    return _REPOSITORY.fullmatch(name) is not None and ".." not in name


def is_commit(revision: str) -> bool:
    """Whether the revision is a whole commit, and no branch or tag."""
    return _COMMIT.fullmatch(revision) is not None


def is_address(url: str) -> bool:
    """Whether this can be the address of a hub."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("https", "http") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
