"""The one parser of settings. The operator reads what the chart renders; `plan` and `render` use a part of it.

It checks every setting once and freezes it, and does no I/O. A wrong setting raises ConfigError, which names the
setting, its value, and what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen_operator.api import reading, uris
from qwen_operator.api.claims import ANY_NAMESPACE, NameRights
from qwen_operator.api.engine import EnvVar
from qwen_operator.api.fields import matches
from qwen_operator.api.pod import DEFAULTS, GPU_RESOURCE, Pod
from qwen_operator.api.schema import object_schema
from qwen_operator.api.sizing import RESOURCE_FORM
from qwen_operator.checkpoints.hubs import Hub, is_address
from qwen_operator.hardware.boards import capability
from qwen_operator.hardware.offers import MIG_RESOURCE
from qwen_operator.hardware.pools import MOST_DOLLARS, GpuPool, thousandths
from qwen_operator.manifests.multi_node import MultiNode, MultiNodes, TopologyPolicy
from qwen_operator.manifests.pods import InspectionDefaults, RuntimeImage
from qwen_operator.planning.types import CacheType, EngineDefaults, ModelCache, ObjectStore, Outbound
from qwen_operator.tenancy import models
from qwen_operator.tenancy.lists import PATTERNS, Mode, Setting, Tenancy
from qwen_runtime.checkpoints.reading import shown

NO_POD_DEFAULTS = Pod()
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_LONGEST_PATTERN = 96
_DEPLOYMENTS = re.compile(r"[-a-z0-9]+/[-.a-z0-9]+\*?|[-a-z0-9]+/?\*|\*", re.ASCII)
_PATH = re.compile(r"/[\w.-]+(/[\w.-]+)*", re.ASCII)
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)

_INTERFACES = re.compile(r"[A-Za-z0-9][\w.-]{0,14}(,[A-Za-z0-9][\w.-]{0,14}){0,7}", re.ASCII)
_EXTENDED = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?/[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?", re.ASCII)
_LABEL = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?", re.ASCII)
_PROXY = re.compile(r"http://[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[0-9]{1,5})?", re.ASCII)


class ConfigError(Exception):
    """A setting is wrong. The text names the setting, its value and what would be right."""


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


def load(environ: Mapping[str, str], text: str) -> Config:
    """The operator's configuration, from the environment and the text of the rendered YAML. Raises ConfigError."""
    content = _yaml(text)
    root, common = Section("", content), settings(content)
    namespace = environ.get("QWEN_OPERATOR_NAMESPACE") or root.section("gateway").text("namespace", "default")
    return Config(
        namespaces=_namespaces(environ),
        namespace=namespace,
        pod_name=environ.get("QWEN_POD_NAME", "qwen-operator"),
        image=common.image,
        engine=common.engine,
        pools=common.pools,
        gateway=_gateway(root, namespace),
        tenancy=common.tenancy,
        workers=root.number("workers", 8),
        resync_seconds=root.number("resyncSeconds", 300),
        http_port=_port(environ),
        read_nodes=environ.get("QWEN_READ_NODES", "true") != "false",
        lease_name=environ.get("QWEN_LEASE_NAME") or "qwen-operator",
        distinct_nodes=root.section("engine").flag("distinctNodes", default=True),
        arbiter=root.section("arbiter").flag("enabled", default=True),
        multi_nodes=common.multi_nodes,
        hub_lookup=_hub(root).lookup,
        pod=common.pod,
        name_rights=name_rights(content),
        network_policy=_network_policy(root),
        recording=_recording(root.section("recording"), environ),
    )


def settings(content: Mapping[str, Any]) -> Settings:
    """The part of the rendered configuration that plans depend on. Raises ConfigError."""
    root = Section("", content)
    image, engine = _image(root), _engine(root)
    tenancy = _tenancy(root.section("tenancy"), engine)
    return Settings(image, engine, _pools(root), _pod(root), tenancy, _multi_nodes(root))


def name_rights(content: Mapping[str, Any]) -> NameRights:
    """Which namespaces may serve which names: the setting `servedNames`. Raises ConfigError."""
    section = Section("", content).section("servedNames")
    for namespace in section.content:
        if namespace != ANY_NAMESPACE and not _NAMESPACE.fullmatch(str(namespace)):
            raise section.wrong(namespace, f"an entry for the name of a namespace, or for {ANY_NAMESPACE!r}")
        for pattern in section.items(namespace):
            if not isinstance(pattern, str) or not 0 < len(pattern) <= _LONGEST_PATTERN:
                raise section.wrong(
                    namespace, f"a list of names of 1 to {_LONGEST_PATTERN} characters, which may contain *"
                )
    return NameRights({str(namespace): tuple(section.items(namespace)) for namespace in section.content})


def _yaml(text: str) -> Mapping[str, Any]:
    import yaml  # noqa: PLC0415 - half of the start-up time of `plan`, which reads no YAML

    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"the configuration file is not YAML: {error}") from error


def _engine(root: Section) -> EngineDefaults:
    engine, hub = root.section("engine"), _hub(root)
    return EngineDefaults(
        image=engine.text("image"),
        version=engine.text("version"),
        args=engine.words("args"),
        env=tuple(_variable(one) for one in engine.sections("env")),
        hub=hub.default,
        hub_url=hub.url,
        cache=_cache(root.section("cache")),
        store=_store(root.section("objectStore")),
        outbound=_outbound(root.section("outbound")),
    )


def _outbound(section: Section) -> Outbound:
    proxy, bundle = section.text("proxy", ""), section.section("caBundle")
    if proxy and not _PROXY.fullmatch(proxy):
        raise section.wrong("proxy", "the address of an HTTP proxy without a password, such as http://proxy:3128")
    config_map = bundle.text("configMap", "")
    if config_map and not _CLAIM.fullmatch(config_map):
        raise bundle.wrong("configMap", "the name of a ConfigMap, or empty")
    return Outbound(proxy, section.text("noProxy", Outbound().no_proxy), config_map, bundle.text("key", "ca.crt"))


def _store(section: Section) -> ObjectStore:
    endpoint, endpoints = section.text("endpoint", ""), section.words("endpoints")
    right = "the address of an S3 server, without a path, such as https://minio.example.com:9000"
    if endpoint and not matches(uris.ENDPOINT_FORM, endpoint):
        raise section.wrong("endpoint", f"{right}, or empty for AWS")
    if not all(matches(uris.ENDPOINT_FORM, one) for one in endpoints):
        raise section.wrong("endpoints", f"a list; each entry must be {right}")
    return ObjectStore(endpoint, endpoints)


def _cache(section: Section) -> ModelCache | None:
    kind = section.choice("type", ("None", CacheType.HOST_PATH, CacheType.CLAIM), "None")
    if kind == "None":
        return None
    of_node = kind == CacheType.HOST_PATH
    name = "path" if of_node else "claimName"
    place = section.text(name, "")
    if of_node and not (_PATH.fullmatch(place) and ".." not in place):
        raise section.wrong("path", "a folder of the nodes such as /var/lib/qwen-models, for cache.type HostPath")
    if not of_node and not _CLAIM.fullmatch(place):
        raise section.wrong("claimName", "the name of a claim, for cache.type PersistentVolumeClaim")
    return ModelCache(CacheType(kind), place, section.number("sizeGiB", 500), section.flag("compile", default=False))


def _pod(root: Section) -> Pod:
    engine = root.section("engine")
    content = {name: value for name, value in engine.section("pod").content.items() if value not in ("", None)}
    for name in content:
        if name not in DEFAULTS:
            raise engine.section("pod").wrong(str(name), f"absent; engine.pod may have {', '.join(DEFAULTS)}")
    if problems := reading.problems(content, object_schema(Pod), "engine.pod"):
        raise ConfigError(problems[0])
    return reading.build(Pod, content)


def _variable(section: Section) -> EnvVar:
    value = section.text("value", "") if section.has("value") else None
    return EnvVar(section.text("name"), value, section.passthrough("valueFrom"))


def _hub(root: Section) -> HubConfig:
    hub = root.section("hub")
    url = hub.text("url", "")
    if url and not is_address(url):
        raise hub.wrong("url", "an address such as https://hub.example.org, or empty")
    default = Hub(hub.choice("default", tuple(Hub), Hub.HUGGING_FACE))
    return HubConfig(default, url.rstrip("/"), hub.flag("lookup", default=True))


def _image(root: Section) -> RuntimeImage:
    image = root.section("image")
    policy = image.choice("pullPolicy", ("Always", "IfNotPresent", "Never"), "IfNotPresent")
    return RuntimeImage(image.text("reference"), policy, root.words("imagePullSecrets"), _inspection(root))


def _inspection(root: Section) -> InspectionDefaults:
    inspection = root.section("inspection")
    resources = inspection.section("resources")
    given = {part: resources.texts(part) for part in ("requests", "limits") if resources.has(part)}
    default = InspectionDefaults()
    return InspectionDefaults(inspection.texts("nodeSelector"), {**default.resources, **given})


def _pools(root: Section) -> tuple[GpuPool, ...]:
    return tuple(_pool(section) for section in root.sections("gpuPools"))


def _multi_nodes(root: Section) -> MultiNodes:
    chart = _multi_node(root.section("engine").section("multiNode"), MultiNode())
    pools = [one for one in root.sections("gpuPools") if one.has("multiNode")]
    return MultiNodes(chart, tuple((_pool(one), _multi_node(one.section("multiNode"), chart)) for one in pools))


def _multi_node(section: Section, default: MultiNode) -> MultiNode:
    """The settings of a section. What it does not have comes from `default`."""
    interface = section.text("interface", "") if section.has("interface") else default.interface
    key = section.text("topologyKey", "") if section.has("topologyKey") else default.topology_key
    if interface and not _INTERFACES.fullmatch(interface):
        raise section.wrong("interface", "names of network interfaces such as eth0 or net1,net2, or empty")
    if key and not _LABEL.fullmatch(key):
        raise section.wrong("topologyKey", "a label of nodes such as topology.example.com/block, or empty")
    policy = section.choice("topologyPolicy", tuple(TopologyPolicy), default.topology_policy)
    return MultiNode(
        interface=interface,
        resources=_extended(section) if section.has("resources") else default.resources,
        ipc_lock=section.flag("ipcLock", default=default.ipc_lock),
        host_network=section.flag("hostNetwork", default=default.host_network),
        shared_memory_gib_per_gpu=section.number("sharedMemoryGiBPerGpu", default.shared_memory_gib_per_gpu),
        topology_key=key,
        topology_policy=TopologyPolicy(policy),
    )


def _extended(section: Section) -> Mapping[str, int]:
    """Resources of device plugins for networks. The plan alone decides about GPUs."""
    resources = section.section("resources")
    for name in resources.content:
        if not _EXTENDED.fullmatch(str(name)) or str(name).startswith((GPU_RESOURCE, MIG_RESOURCE, "kubernetes.io/")):
            raise resources.wrong(str(name), "absent: a resource of a network has a name such as rdma/hca")
    return {str(name): resources.number(str(name)) for name in resources.content}


def _pool(section: Section) -> GpuPool:
    cost, compute = section.raw("costPerGpuHour"), section.raw("computeCapability")
    amount, compute_capability = thousandths(cost), capability(str(compute))
    if cost is not None and amount is None:
        raise section.wrong("costPerGpuHour", f'dollars per GPU and hour from 0 to {MOST_DOLLARS}, for example "2.90"')
    if compute is not None and compute_capability is None:
        raise section.wrong("computeCapability", 'MAJOR.MINOR, for example "9.0"')
    resource_name, pods = section.text("resourceName", "nvidia.com/gpu"), section.number("podsPerGpu", 1)
    if not matches(RESOURCE_FORM, resource_name):
        raise section.wrong("resourceName", "nvidia.com/gpu, a MIG profile such as nvidia.com/mig-3g.40gb, or a share")
    if resource_name.startswith("nvidia.com/gpu") and resource_name != "nvidia.com/gpu" and pods < 2:
        raise section.wrong("podsPerGpu", f"the number of pods that share one GPU as {resource_name}, for example 4")
    return GpuPool(
        resource_name=resource_name,
        pods_per_gpu=pods,
        name=section.text("name"),
        product=section.text("product"),
        memory_mib=section.number("memoryMiB"),
        gpus_per_node=section.number("gpusPerNode"),
        node_selector=section.texts("nodeSelector"),
        tolerations=tuple(one.content for one in section.sections("tolerations")),
        max_nodes=section.number("maxNodes") if section.has("maxNodes") else None,
        cost_per_gpu_hour=amount,
        compute_capability=compute_capability,
    )


def _gateway(root: Section, namespace: str) -> GatewayConfig:
    gateway = root.section("gateway")
    return GatewayConfig(
        namespace=gateway.text("namespace", namespace),
        keys_secret=gateway.text("keysSecret", "qwen-gateway-keys"),
        auth=gateway.choice("auth", ("keys", "none"), "keys"),
        create_keys=gateway.flag("createKeys", default=True),
        pod_labels=",".join(f"{name}={value}" for name, value in gateway.texts("podLabels").items()),
        hold_seconds=gateway.number("holdSeconds", 0, least=0),
    )


def _network_policy(root: Section) -> NetworkPolicyConfig:
    if not root.has("networkPolicy"):
        return NetworkPolicyConfig()
    policy = root.section("networkPolicy")
    return NetworkPolicyConfig(
        enabled=policy.flag("enabled", default=False),
        name=policy.text("name"),
        ingress=tuple(rule.content for rule in policy.sections("ingress")),
    )


def _recording(section: Section, environ: Mapping[str, str]) -> RecordingConfig:
    patterns = section.words("deployments")
    for index, pattern in enumerate(patterns):
        if not _DEPLOYMENTS.fullmatch(pattern):
            raise section.wrong_entry("deployments", index, "NAMESPACE/NAME, or its beginning and *, or *")
    return RecordingConfig(
        deployments=patterns,
        mebibytes=section.number("mebibytes", 128),
        folder=environ.get("QWEN_RECORDING_FOLDER") or RecordingConfig().folder,
    )


def _tenancy(section: Section, engine: EngineDefaults) -> Tenancy:
    by_namespace = section.section("namespaces")
    mode = Mode(section.choice("mode", tuple(Mode), Mode.RESTRICTED))
    return Tenancy(
        mode=mode,
        added=_lists(section, mode),
        by_namespace={name: _lists(by_namespace.section(name), mode) for name in by_namespace.content},
        exempt=frozenset(section.words("exempt")),
        engine_image=engine.image,
        hub=engine.hub,
    )


def _lists(section: Section, mode: Mode) -> Mapping[Setting, tuple[str, ...]]:
    lists = {setting: entries for setting in Setting if (entries := section.words(setting))}
    for index, entry in enumerate(lists.get(Setting.MODELS, ())):
        if mode is Mode.TRUSTED:
            raise section.wrong_entry(Setting.MODELS, index, "absent while tenancy.mode is trusted: then no list holds")
        if not models.is_entry(entry):
            raise section.wrong_entry(Setting.MODELS, index, models.FORM)
    for setting, entries in lists.items():
        star = "*" if setting in PATTERNS else ""
        if not all(entries) or any("*" in entry.removesuffix(star) for entry in entries):
            raise section.wrong(
                setting, f"a list of names{', each with at most one *, at its end' if star else ', without *'}"
            )
    return lists


def _port(environ: Mapping[str, str]) -> int:
    text = environ.get("QWEN_OPERATOR_PORT", "8080")
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise ConfigError(f"QWEN_OPERATOR_PORT is {text!r}: it must be a number from 1 to 65535")
    return int(text)


def _namespaces(environ: Mapping[str, str]) -> tuple[str, ...]:
    names = environ.get("QWEN_WATCH_NAMESPACES", "").split(",")
    return tuple(name.strip() for name in names if name.strip())


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping of settings. `path` is its name in messages, "" for the outermost one. Null counts as absent."""

    path: str
    content: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.content, Mapping):
            raise ConfigError(f"{self.path or 'the configuration'} is {shown(self.content)}: it must be a mapping")

    def raw(self, name: str) -> Any:
        """The value as it is, None if it is absent."""
        return self.content.get(name)

    def has(self, name: str) -> bool:
        """Whether the setting is present and not null."""
        return self.raw(name) is not None

    def wrong(self, name: str, right: str) -> ConfigError:
        """The error for a setting: its path, its value, and what would be right."""
        state = f"is {shown(self.raw(name))}" if self.has(name) else "is missing"
        return ConfigError(f"{self._at(name)} {state}: it must be {right}")

    def wrong_entry(self, name: str, index: int, right: str) -> ConfigError:
        """The error for one entry of a list."""
        place = f"{name}[{index}]"
        return Section(self.path, {place: self.items(name)[index]}).wrong(place, right)

    def section(self, name: str) -> Section:
        """A mapping in this one, empty if it is absent."""
        return Section(self._at(name), self.raw(name) if self.has(name) else {})

    def passthrough(self, name: str) -> Any:
        """A mapping that the operator passes on to Kubernetes unchanged, None if it is absent."""
        return self.section(name).content if self.has(name) else None

    def sections(self, name: str) -> tuple[Section, ...]:
        """A list of mappings, empty if it is absent."""
        return tuple(Section(self._at(f"{name}[{index}]"), one) for index, one in enumerate(self.items(name)))

    def items(self, name: str) -> list[Any]:
        """A list, empty if it is absent."""
        value = self.raw(name)
        if value is not None and not isinstance(value, list):
            raise self.wrong(name, "a list")
        return value or []

    def words(self, name: str) -> tuple[str, ...]:
        """A list of texts; a number counts as its digits."""
        for index, value in enumerate(self.items(name)):
            if not isinstance(value, (str, int, float)) or isinstance(value, bool):
                raise self.wrong_entry(name, index, "a text, in quotes")
        return tuple(str(value) for value in self.items(name))

    def texts(self, name: str) -> Mapping[str, str]:
        """A mapping of texts, such as labels."""
        section = self.section(name)
        return {str(key): section.text(key, "") for key in section.content}

    def text(self, name: str, default: str | None = None) -> str:
        """A text. It is required if there is no default, and it may be empty only if the default is ""."""
        value = self.raw(name) if self.has(name) else default
        if not isinstance(value, str) or (not value and default != ""):
            raise self.wrong(name, "a text, in quotes" + ("" if default == "" else " and not empty"))
        return value

    def choice(self, name: str, right: tuple[str, ...], default: str) -> str:
        """One of some texts."""
        value = self.raw(name) if self.has(name) else default
        if value not in right:
            raise self.wrong(name, " or ".join(right))
        return str(value)

    def number(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number of at least `least`. It is required if there is no default."""
        value = self.raw(name) if self.has(name) else default
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(name, f"a whole number of at least {least}")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        """True or false."""
        value = self.raw(name) if self.has(name) else default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def _at(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name
