"""Parses the settings that plans and pods depend on. The commands without a cluster read only these. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qwen_operator.api import reading, uris
from qwen_operator.api.engine import EnvVar
from qwen_operator.api.fields import matches
from qwen_operator.api.pod import DEFAULTS, Pod
from qwen_operator.api.schema import object_schema
from qwen_operator.checkpoints.hubs import Hub, is_address
from qwen_operator.config.multi_node import multi_nodes
from qwen_operator.config.pools import gpu_pools
from qwen_operator.config.section import ConfigError, Section
from qwen_operator.config.tenancy import tenancy
from qwen_operator.config.types import HubConfig, Settings
from qwen_operator.manifests.pod_parts import InspectionDefaults, RuntimeImage
from qwen_operator.planning.types import CacheType, EngineDefaults, ModelCache, ObjectStore, Outbound

_PATH = re.compile(r"/[\w.-]+(/[\w.-]+)*", re.ASCII)
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
_PROXY = re.compile(r"http://[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[0-9]{1,5})?", re.ASCII)


def settings(content: Mapping[str, Any]) -> Settings:
    """The part of the rendered configuration that plans depend on. Raises ConfigError."""
    root = Section("", content)
    image, engine = _image(root), _engine(root)
    limits = tenancy(root.section("tenancy"), engine)
    return Settings(image, engine, gpu_pools(root), _pod(root), limits, multi_nodes(root))


def _engine(root: Section) -> EngineDefaults:
    engine, hub = root.section("engine"), hub_config(root)
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


def hub_config(root: Section) -> HubConfig:
    """The setting `hub`. Raises ConfigError."""
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
