"""The configuration file: its defaults, and one clear sentence for every mistake."""

from __future__ import annotations

import pytest

from qwen_operator.api.claims import NameRights
from qwen_operator.config.load import load
from qwen_operator.config.section import ConfigError
from qwen_operator.planning.types import CacheType, ModelCache
from tests.unit.config.files import GOOD


def test_a_short_file_and_the_environment_are_enough() -> None:
    config = load({"QWEN_WATCH_NAMESPACES": "a, b,", "QWEN_OPERATOR_NAMESPACE": "system"}, GOOD)
    assert config.namespaces == ("a", "b")
    assert config.image.pull_secrets == ("regcred",)
    assert config.engine.args == ("--device=cpu",)
    assert config.engine.env[0].value == "1"
    assert config.pools[0].memory_mib == 23034
    assert (config.gateway.namespace, config.gateway.keys_secret, config.gateway.auth) == (
        "system",
        "qwen-gateway-keys",
        "none",
    )
    assert (config.workers, config.resync_seconds, config.http_port) == (8, 300, 8080)
    assert load({}, GOOD).namespaces == ()


@pytest.mark.parametrize(
    ("text", "cache"),
    [
        ("", None),
        ("cache: {type: None, path: /ignored}", None),
        ("cache: {type: HostPath, path: /var/lib/a}", ModelCache(CacheType.HOST_PATH, "/var/lib/a", 500)),
        ("cache: {type: PersistentVolumeClaim, claimName: b, sizeGiB: 9}", ModelCache(CacheType.CLAIM, "b", 9)),
        ("cache: {type: HostPath, path: /a, compile: true}", ModelCache(CacheType.HOST_PATH, "/a", 500, compile=True)),
    ],
)
def test_the_cache(text: str, cache: ModelCache | None) -> None:
    assert load({}, GOOD + text).engine.cache == cache


def test_two_releases_in_one_namespace_can_have_a_lease_each() -> None:
    assert load({}, GOOD).lease_name == "qwen-operator"
    assert load({"QWEN_LEASE_NAME": "other-operator"}, GOOD).lease_name == "other-operator"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            ("image: {reference: ", "image: {ref: "),
            "image.reference is missing: it must be a text",
        ),
        (("image: {reference", "image: [] #"), "image is a list: it must be a mapping"),
        (("example/qwen-operator:1", ""), "image.reference is '': it must be a text, in quotes and not empty"),
        (("image: {reference", "image: 7 #"), "image is 7: it must be a mapping"),
        (("version: 0.5.23", "version: 0.5"), "engine.version is 0.5: it must be a text"),
        (("memoryMiB: 23034", "memoryMiB: 0"), "gpuPools[0].memoryMiB is 0: it must be a whole number of at least 1"),
        (
            ("gpusPerNode: 4", "gpusPerNode: yes"),
            "gpuPools[0].gpusPerNode is true: it must be a whole",
        ),
        (
            ("gpusPerNode: 4", "gpusPerNode: 4, costPerGpuHour: x"),
            "gpuPools[0].costPerGpuHour is 'x': it must be dollars",
        ),
        (("args: [--device=cpu]", "args: --device=cpu"), "engine.args is '--device=cpu': it must be a list"),
        (("env: [{name: A", "env: [{key: A"), "engine.env[0].name is missing: it must be a text"),
        (("gateway: {", "hub: {default: github}\ngateway: {"), "hub.default is 'github': it must be hf or modelscope"),
        (
            ("gateway: {", "hub: {url: hub.example.org}\ngateway: {"),
            "hub.url is 'hub.example.org': it must be an",
        ),
        (
            ("gateway: {", "outbound: {proxy: https://me:secret@proxy}\ngateway: {"),
            "outbound.proxy is 'https://me:secret@proxy': it must be the address of an HTTP proxy without a password",
        ),
        (
            ("gateway: {", "outbound: {caBundle: {configMap: A_B}}\ngateway: {"),
            "outbound.caBundle.configMap is 'A_B': it must be the name of a ConfigMap, or empty",
        ),
        (
            ("gateway: {", "objectStore: {endpoint: minio}\ngateway: {"),
            "objectStore.endpoint is 'minio': it must be the address of an S3 server, without a path",
        ),
        (
            ("gateway: {", "objectStore: {endpoints: [https://minio/path]}\ngateway: {"),
            "objectStore.endpoints is a list: it must be a list; each entry must be the address of an S3 server",
        ),
        (
            ("gateway: {", "cache: {type: EmptyDir}\ngateway: {"),
            "cache.type is 'EmptyDir': it must be None or HostPath or PersistentVolumeClaim",
        ),
        (
            ("gateway: {", "cache: {type: Disk}\ngateway: {"),
            "cache.type is 'Disk': it must be None or HostPath or PersistentVolumeClaim",
        ),
        (
            ("gateway: {", "cache: {type: HostPath, path: a}\ngateway: {"),
            "cache.path is 'a': it must be a folder of the nodes such as /var/lib/qwen-models",
        ),
        (
            ("gateway: {", "cache: {type: PersistentVolumeClaim}\ngateway: {"),
            "cache.claimName is missing: it must be the name of a claim",
        ),
        (("gateway: {", "cache: {type: HostPath, path: /a, sizeGiB: 0}\ngateway: {"), "cache.sizeGiB is 0"),
        (("gateway: {", "hub: {lookup: maybe}\ngateway: {"), "hub.lookup is 'maybe': it must be true or false"),
        (
            ("engine: {", "engine: {multiNode: {interface: 'eth 0'}, "),
            "engine.multiNode.interface is 'eth 0': it must be names of network interfaces such as eth0",
        ),
        (
            ("engine: {", "engine: {multiNode: {resources: {cpu: 1}}, "),
            "engine.multiNode.resources.cpu is 1: it must be absent: a resource of a network has a name such as",
        ),
        (
            ("engine: {", "engine: {multiNode: {resources: {nvidia.com/gpu: 1}}, "),
            "engine.multiNode.resources.nvidia.com/gpu is 1: it must be absent",
        ),
        (
            ("gpusPerNode: 4", "gpusPerNode: 4, multiNode: {resources: {rdma/hca: 0}}"),
            "gpuPools[0].multiNode.resources.rdma/hca is 0: it must be a whole number of at least 1",
        ),
        (
            ("engine: {", "engine: {multiNode: {topologyKey: a b}, "),
            "engine.multiNode.topologyKey is 'a b': it must be a label of nodes",
        ),
        (
            ("engine: {", "engine: {multiNode: {topologyPolicy: Soft}, "),
            "engine.multiNode.topologyPolicy is 'Soft': it must be Preferred or Required",
        ),
        (("auth: none", "auth: open"), "gateway.auth is 'open': it must be keys or none"),
        (("gateway: {", "gateway: {{"), "is not YAML"),
        (('value: "1"', "value: 1"), "engine.env[0].value is 1: it must be a text, in quotes"),
        (('value: "1"', "valueFrom: x"), "engine.env[0].valueFrom is 'x': it must be a mapping"),
        (("args: [--device=cpu]", "args: [true]"), "engine.args[0] is true: it must be a text, in quotes"),
        (("[regcred]", "[{name: regcred}]"), "imagePullSecrets[0] is an object: it must be a text, in quotes"),
        (
            ('operator:1"', 'operator:1", pullPolicy: Sometimes'),
            "image.pullPolicy is 'Sometimes': it must be Al",
        ),
        (("gpusPerNode: 4", "gpusPerNode: 4, nodeSelector: {pool: 1}"), "gpuPools[0].nodeSelector.pool is 1: it must"),
        (
            ("gpusPerNode: 4", "gpusPerNode: 4, resourceName: nvidia.com/gpumem"),
            "gpuPools[0].resourceName is 'nvidia.com/gpumem': it must be nvidia.com/gpu, a MIG profile",
        ),
        (
            ("gpusPerNode: 4", "gpusPerNode: 4, resourceName: nvidia.com/gpu.shared"),
            "gpuPools[0].podsPerGpu is missing: it must be the number of pods that share one GPU",
        ),
        (("[{operator: Exists}]", "[gpu]"), "gpuPools[0].tolerations[0] is 'gpu': it must be a mapping"),
        (("gpuPools: [{", "gpuPools: [x, {"), "gpuPools[0] is 'x': it must be a mapping"),
        (("gateway: {", "servedNames: [a]\ngateway: {"), "servedNames is a list: it must be a mapping"),
        (("gateway: {", "servedNames: {a: x}\ngateway: {"), "servedNames.a is 'x': it must be a list"),
        (("gateway: {", "servedNames: {a: ['']}\ngateway: {"), "servedNames.a is a list: it must be a list of names"),
        (("gateway: {", "servedNames: {a: [1]}\ngateway: {"), "servedNames.a is a list: it must be a list of names"),
        (("gateway: {", "servedNames: {A_b: [x]}\ngateway: {"), "servedNames.A_b is a list: it must be an entry for"),
        (
            ("gateway: {", "networkPolicy: {enabled: true}\ngateway: {"),
            "networkPolicy.name is missing: it must be a text",
        ),
        (("gateway: {", "networkPolicy: {name: a, enabled: 1}\ngateway: {"), "networkPolicy.enabled is 1: it must be"),
        (
            ("gateway: {", "networkPolicy: {name: a, ingress: [b]}\ngateway: {"),
            "networkPolicy.ingress[0] is 'b': it must",
        ),
        (
            ("gateway: {", "recording: {deployments: [team/*, chat]}\ngateway: {"),
            "recording.deployments[1] is 'chat': it must be NAMESPACE/NAME, or its beginning and *, or *",
        ),
        (("gateway: {", "recording: {mebibytes: 0}\ngateway: {"), "recording.mebibytes is 0: it must be a whole"),
        (("gateway: {", "workers: 0\ngateway: {"), "workers is 0: it must be a whole number of at least 1"),
    ],
)
def test_a_mistake_is_named_with_its_value_and_what_would_be_right(change: tuple[str, str], says: str) -> None:
    assert change[0] in GOOD
    with pytest.raises(ConfigError) as caught:
        load({}, GOOD.replace(*change))
    assert says in str(caught.value)


def test_a_file_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match="the configuration is a list: it must be a mapping"):
        load({}, "- a")


def test_null_is_a_setting_that_is_not_there() -> None:
    nulls = "hub: {default: null, lookup: null}\nworkers: null\nresyncSeconds: null\n"
    assert load({}, GOOD + nulls) == load({}, GOOD)


def test_where_models_come_from() -> None:
    config = load({}, GOOD)
    assert (config.engine.hub, config.engine.hub_url, config.hub_lookup) == ("hf", "", True)
    config = load({}, f"{GOOD}hub: {{default: modelscope, url: 'https://hub.example.org/', lookup: false}}")
    assert (config.engine.hub, config.engine.hub_url) == ("modelscope", "https://hub.example.org")
    assert not config.hub_lookup


def test_a_port_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="QWEN_OPERATOR_PORT is 'x'"):
        load({"QWEN_OPERATOR_PORT": "x"}, GOOD)


def test_which_namespaces_may_serve_which_names() -> None:
    rights = load({}, GOOD + 'servedNames: {team-a: ["team-a-*", x], "*": []}').name_rights
    assert rights == NameRights({"team-a": ("team-a-*", "x"), "*": ()})
    assert load({}, GOOD).name_rights == NameRights()


def test_looks_are_recorded_only_of_what_is_named() -> None:
    assert load({}, GOOD).recording.deployments == ()
    named = f"{GOOD}\nrecording: {{deployments: [a/b, c/*, '*']}}"
    recording = load({"QWEN_RECORDING_FOLDER": "/tmp/r"}, named).recording
    assert (recording.deployments, recording.mebibytes, recording.folder) == (("a/b", "c/*", "*"), 128, "/tmp/r")


def test_the_network_policy_is_off_unless_the_chart_asks_for_it() -> None:
    assert load({}, GOOD).network_policy.name == ""
    section = "networkPolicy: {enabled: true, name: system.qwen-engines, ingress: [{ports: [{port: 8000}]}]}\n"
    policy = load({}, GOOD + section).network_policy
    assert (policy.enabled, policy.name) == (True, "system.qwen-engines")
    assert policy.ingress == ({"ports": [{"port": 8000}]},)
