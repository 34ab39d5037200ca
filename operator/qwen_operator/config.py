"""The operator's configuration: environment variables and one YAML file, checked once, then frozen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from qwen_operator.api.spec import EnvVar
from qwen_operator.checkpoints.hubs import Hub, is_address
from qwen_operator.hardware.pools import GpuPool, details
from qwen_operator.manifests.pods import RuntimeImage
from qwen_operator.planning.types import EngineDefaults


class ConfigError(Exception):
    """The configuration cannot be used; the text names the setting, its value and what would be right."""


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Where the gateway runs and how its clients prove who they are: `auth` is "keys" or "none"."""

    namespace: str
    keys_secret: str
    auth: str


@dataclass(frozen=True, slots=True)
class Config:
    """What one operator process runs with; `namespaces` empty means all of them.

    `read_nodes` false: there is no right to read nodes, the declared pools are all the hardware that is known.
    `hub_lookup`: public repositories of model hubs may be read.
    """

    namespaces: tuple[str, ...]
    namespace: str
    pod_name: str
    image: RuntimeImage
    engine: EngineDefaults
    pools: tuple[GpuPool, ...]
    gateway: GatewayConfig
    workers: int = 8
    resync_seconds: int = 300
    http_port: int = 8080
    read_nodes: bool = True
    lease_name: str = "qwen-operator"
    hub_lookup: bool = False


def load(environ: Mapping[str, str], text: str) -> Config:
    """The configuration from the environment and the text of the YAML file; raises ConfigError."""
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"the configuration file is not YAML: {error}") from error
    root = _Section("", content)
    image, engine, gateway = root.section("image"), root.section("engine"), root.section("gateway")
    hub = root.section("hub")
    namespace = environ.get("QWEN_OPERATOR_NAMESPACE") or gateway.text("namespace", "default")
    secrets = tuple(str(name) for name in root.items("imagePullSecrets"))
    auth = gateway.text("auth", "keys")
    if auth not in ("keys", "none"):
        raise ConfigError(f'gateway.auth is "{auth}": it must be "keys" or "none"')
    return Config(
        namespaces=_words(environ.get("QWEN_WATCH_NAMESPACES", "")),
        namespace=namespace,
        pod_name=environ.get("QWEN_POD_NAME", "qwen-operator"),
        image=RuntimeImage(image.text("reference"), image.text("pullPolicy", "IfNotPresent"), secrets),
        engine=EngineDefaults(
            image=engine.text("image"),
            version=engine.text("version"),
            args=tuple(str(arg) for arg in engine.items("args")),
            env=tuple(_env(f"engine.env[{index}]", item) for index, item in enumerate(engine.items("env"))),
            hub=_hub(hub),
            hub_url=_address(hub),
        ),
        pools=tuple(_pool(f"gpuPools[{index}]", item) for index, item in enumerate(root.items("gpuPools"))),
        gateway=GatewayConfig(
            gateway.text("namespace", namespace), gateway.text("keysSecret", "qwen-gateway-keys"), auth
        ),
        workers=root.number("workers", 8),
        resync_seconds=root.number("resyncSeconds", 300),
        http_port=_port(environ),
        read_nodes=environ.get("QWEN_READ_NODES", "true") != "false",
        lease_name=environ.get("QWEN_LEASE_NAME") or "qwen-operator",
        hub_lookup=hub.flag("lookup", default=True),
    )


def _hub(section: "_Section") -> Hub:
    name = section.text("default", str(Hub.HUGGING_FACE))
    if name not in list(Hub):
        raise ConfigError(f'hub.default is "{name}": it must be "hf" or "modelscope"')
    return Hub(name)


def _address(section: "_Section") -> str:
    url = section.raw("url") or ""
    if url and not (isinstance(url, str) and is_address(url)):
        raise ConfigError(f"hub.url is {url!r}: it must be an address such as https://hub.example.org, or empty")
    return str(url).rstrip("/")


def _port(environ: Mapping[str, str]) -> int:
    text = environ.get("QWEN_OPERATOR_PORT", "8080")
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise ConfigError(f"QWEN_OPERATOR_PORT is {text!r}: it must be a number from 1 to 65535")
    return int(text)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _env(path: str, item: object) -> EnvVar:
    section = _Section(path, item)
    return EnvVar(section.text("name"), section.raw("value"), section.raw("valueFrom"))


def _pool(path: str, item: object) -> GpuPool:
    section = _Section(path, item)
    try:
        optional = details(path, section.content)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return GpuPool(
        name=section.text("name"),
        product=section.text("product"),
        memory_mib=section.number("memoryMiB"),
        gpus_per_node=section.number("gpusPerNode"),
        node_selector=section.raw("nodeSelector") or {},
        tolerations=tuple(section.items("tolerations")),
        **optional,
    )


class _Section:
    """A mapping of the file that knows its own path, for error texts."""

    def __init__(self, path: str, content: object) -> None:
        self._path = path
        if not isinstance(content, dict):
            raise ConfigError(f"{path or 'the configuration'} is {content!r}: it must be a mapping")
        self._content = content

    @property
    def content(self) -> Mapping[str, Any]:
        return self._content

    def raw(self, name: str) -> Any:
        return self._content.get(name)

    def section(self, name: str) -> "_Section":
        return _Section(self._at(name), self._content.get(name) or {})

    def text(self, name: str, default: str | None = None) -> str:
        value = self._content.get(name, default)
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{self._at(name)} is {value!r}: it must be a text that is not empty")
        return value

    def number(self, name: str, default: int | None = None) -> int:
        value = self._content.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{self._at(name)} is {value!r}: it must be a whole number of at least 1")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._content.get(name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self._at(name)} is {value!r}: it must be true or false")
        return value

    def items(self, name: str) -> list[Any]:
        value = self._content.get(name) or []
        if not isinstance(value, list):
            raise ConfigError(f"{self._at(name)} is {value!r}: it must be a list")
        return value

    def _at(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name
