"""Parses the settings of replicas over several nodes: `engine.multiNode`, and `multiNode` of a pool. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from qwen_operator.api.pod import GPU_RESOURCE
from qwen_operator.config.pools import gpu_pool
from qwen_operator.config.section import Section
from qwen_operator.hardware.offers import MIG_RESOURCE
from qwen_operator.manifests.multi_node import MultiNode, MultiNodes, TopologyPolicy

_INTERFACES = re.compile(r"[A-Za-z0-9][\w.-]{0,14}(,[A-Za-z0-9][\w.-]{0,14}){0,7}", re.ASCII)
_EXTENDED = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?/[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?", re.ASCII)
_LABEL = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?", re.ASCII)


def multi_nodes(root: Section) -> MultiNodes:
    """The settings of the chart, and those of the pools that have their own. Raises ConfigError."""
    chart = _multi_node(root.section("engine").section("multiNode"), MultiNode())
    pools = [one for one in root.sections("gpuPools") if one.has("multiNode")]
    return MultiNodes(chart, tuple((gpu_pool(one), _multi_node(one.section("multiNode"), chart)) for one in pools))


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
