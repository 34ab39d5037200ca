"""The settings of an operator process, checked and frozen. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen_operator.api.claims import NameRights
from qwen_operator.api.pod import Pod
from qwen_operator.checkpoints.hubs import Hub
from qwen_operator.hardware.pools import GpuPool
from qwen_operator.manifests.multi_node import MultiNodes
from qwen_operator.manifests.pod_parts import RuntimeImage
from qwen_operator.planning.types import EngineDefaults
from qwen_operator.tenancy.lists import Tenancy

NO_POD_DEFAULTS = Pod()


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Where the gateway runs, and how clients authenticate: `auth` is "keys" or "none".

    `create_keys`: whether the operator creates the Secret of the keys if there is none. `pod_labels`: the selector of
    its pods; "" if the operator cannot read them. `hold_seconds`: how long a request may wait there for a replica.
    """

    namespace: str
    keys_secret: str
    auth: str
    create_keys: bool = True
    pod_labels: str = ""
    hold_seconds: int = 0


@dataclass(frozen=True, slots=True)
class NetworkPolicyConfig:
    """The NetworkPolicy of the namespaces with engines: its name, and who may connect to them.

    `ingress` has the form of `spec.ingress`. If `enabled` is false, the operator removes the policies of this name.
    Without a name it leaves all policies alone.
    """

    enabled: bool = False
    name: str = ""
    ingress: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class RecordingConfig:
    """Which looks of the scaling loop are recorded.

    `deployments`: NAMESPACE/NAME, or the beginning with `*`; empty: none. `mebibytes`: the most that the files in
    `folder` may have together.
    """

    deployments: tuple[str, ...] = ()
    mebibytes: int = 128
    folder: str = "/var/lib/qwen-operator/recording"


@dataclass(frozen=True, slots=True)
class HubConfig:
    """The hub of models without a source, the address of its mirror or "", and whether the operator may query hubs."""

    default: Hub
    url: str
    lookup: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """What a plan and its pods depend on: the operator's own image, the engine, the declared pools.

    `pod` has the chart's defaults of spec.pod. `tenancy` decides whether there may be a plan.
    """

    image: RuntimeImage
    engine: EngineDefaults
    pools: tuple[GpuPool, ...]
    pod: Pod = NO_POD_DEFAULTS
    tenancy: Tenancy = field(default_factory=Tenancy)
    multi_nodes: MultiNodes = field(default_factory=MultiNodes)


@dataclass(frozen=True, slots=True)
class Config:
    """The configuration of one operator process. Empty `namespaces` means all of them.

    If `read_nodes` is false, the operator may not read nodes and knows only the declared pools. If `hub_lookup` is
    true, it may query the public repositories of model hubs. `pod` has the chart's defaults of spec.pod.
    `name_rights`: which namespaces may serve which names. `distinct_nodes`: no two pods of a replica are on one node.
    `arbiter`: between deployments of different priorities, the operator decides who gets GPUs that are short.
    `multi_nodes`: what the pods of replicas over several nodes get for their network.
    """

    namespaces: tuple[str, ...]
    namespace: str
    pod_name: str
    image: RuntimeImage
    engine: EngineDefaults
    pools: tuple[GpuPool, ...]
    gateway: GatewayConfig
    tenancy: Tenancy = field(default_factory=Tenancy)
    workers: int = 8
    resync_seconds: int = 300
    http_port: int = 8080
    read_nodes: bool = True
    lease_name: str = "qwen-operator"
    hub_lookup: bool = False
    pod: Pod = NO_POD_DEFAULTS
    name_rights: NameRights = field(default_factory=NameRights)
    network_policy: NetworkPolicyConfig = NetworkPolicyConfig()
    recording: RecordingConfig = RecordingConfig()
    distinct_nodes: bool = True
    arbiter: bool = True
    multi_nodes: MultiNodes = field(default_factory=MultiNodes)
