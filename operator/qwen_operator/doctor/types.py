"""What the collector hands to the checks, and what the checks return. Only data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from qwen_operator.config.types import Config
from qwen_operator.objects import Object


class Mark(StrEnum):
    """How good or bad a finding is. UNKNOWN: the check could not look, usually because a right is missing."""

    OK = "ok"
    WARNING = "warning"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the result. `name` is fixed and for scripts, `message` is one sentence with the cure."""

    mark: Mark
    name: str
    message: str


@dataclass(frozen=True, slots=True)
class Listed:
    """The objects of one kind. `problem` says in half a sentence why there are none, "" if they were read.

    `absent` is true if the API server does not know the kind, or if the one object that was asked for does not exist.
    """

    items: Sequence[Object] = ()
    problem: str = ""
    absent: bool = False

    @property
    def first(self) -> Object:
        """The only object, {} if there is none."""
        return self.items[0] if self.items else {}


@dataclass(frozen=True, slots=True)
class Page:
    """The text of an answer that is no object. `status` is that of HTTP, 0 if there was none; `problem` as above.

    `proxied` is true for an error that is not the API server's own, but that of a pod behind it.
    """

    text: str = ""
    status: int = 0
    problem: str = ""
    proxied: bool = False


NOTHING, NO_PAGE = Listed(), Page()


@dataclass(frozen=True, slots=True)
class Right:
    """Whether `account` may do `verb` on `resource` (plural.group). `problem` says why that is not known.

    `account` is "" for the user. `namespace` is "" for the whole cluster.
    """

    account: str
    verb: str
    resource: str
    namespace: str
    allowed: bool
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Served:
    """One namespace whose QwenDeployments the release serves, or will serve."""

    name: str
    namespace: Listed = NOTHING
    quotas: Listed = NOTHING
    limit_ranges: Listed = NOTHING
    deployments: Sequence[Object] = ()
    tried: Sequence[tuple[str, str]] = ()
    """With --dry-run-pods: the name of a sample pod, and why the API server rejected it ("" if it did not)."""


@dataclass(frozen=True, slots=True)
class Installation:
    """The release. `operator` is its Deployment. `config` is None if it is not installed or cannot be read."""

    namespace: str
    base: str
    operator: Listed = NOTHING
    config: Config | None = None
    problem: str = ""

    @property
    def installed(self) -> bool:
        return bool(self.operator.items)


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """Everything that the checks look at. `now` is the time of the collection in RFC 3339.

    `samples` are pods as this version makes them, of the smallest model. `served_problem` says why the namespaces with
    QwenDeployments are not known.
    """

    now: str
    installation: Installation
    samples: Sequence[Mapping[str, Any]] = ()
    served: Sequence[Served] = ()
    served_problem: str = ""
    version: Listed = NOTHING
    nodes: Listed = NOTHING
    daemon_sets: Listed = NOTHING
    resource_slices: Listed = NOTHING
    storage_classes: Listed = NOTHING
    operators: Listed = NOTHING
    webhooks: Listed = NOTHING
    mutating_webhooks: Listed = NOTHING
    policies: Listed = NOTHING
    policy_bindings: Listed = NOTHING
    definition: Listed = NOTHING
    deployments: Listed = NOTHING
    lease: Listed = NOTHING
    operator_pods: Listed = NOTHING
    pod_monitors: Listed = NOTHING
    prometheuses: Listed = NOTHING
    gateways: Listed = NOTHING
    log: Page = NO_PAGE
    gateway: Page = NO_PAGE
    rights: Sequence[Right] = field(default=())

    @property
    def existing(self) -> list[Served]:
        """The namespaces that exist, or of which that is not known."""
        return [one for one in self.served if not one.namespace.absent]
