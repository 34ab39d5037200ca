"""The GPUs of the nodes, read by the same code as for a plan, and the programs that offer them."""

from collections.abc import Iterator

from qwen_operator import objects
from qwen_operator.doctor.types import ClusterFacts, Finding, Mark
from qwen_operator.hardware.inventory import GPU_RESOURCE, GpuProduct, inventory
from qwen_operator.planning.refusals import unlabelled

NAME, PLUGIN = "gpus", "device-plugin"
_DRA_DRIVER = "gpu.nvidia.com"
_PLUGINS = ("nvidia-device-plugin", "nvidia-gpu-device-plugin", "hami-device-plugin", "gke-nvidia-gpu-device-plugin")
_RESOURCES = ("nvidia.com/gpu", "nvidia.com/mig-")


def check(facts: ClusterFacts) -> Iterator[Finding]:
    """What plans can use, and one sentence for each reason why they cannot use the rest."""
    config = facts.installation.config
    if facts.nodes.problem:
        yield Finding(Mark.UNKNOWN, NAME, f"not checked: {facts.nodes.problem}")
    hardware = inventory(facts.nodes.items, config.pools if config else ()).usable(())
    for product in hardware.products:
        yield Finding(Mark.OK, NAME, _offer(product))
    if hardware.unlabelled:
        yield Finding(Mark.WARNING if hardware.products else Mark.BAD, NAME, unlabelled(hardware))
    for sentence in hardware.ignored:
        yield Finding(Mark.WARNING, NAME, sentence)
    for sentence in hardware.notes:
        yield Finding(Mark.WARNING, NAME, sentence)
    nothing = not (hardware.products or hardware.unlabelled or facts.nodes.problem)
    if nothing:
        yield Finding(
            Mark.BAD,
            NAME,
            f"no node offers a whole {GPU_RESOURCE} and no gpuPools are declared: add a GPU node with the NVIDIA "
            "device plugin, or declare in gpuPools the pool that will be scaled up",
        )


def check_plugin(facts: ClusterFacts) -> Iterator[Finding]:
    """Whether something offers GPUs to pods as an extended resource."""
    if facts.nodes.problem:
        yield Finding(Mark.UNKNOWN, PLUGIN, f"not checked: {facts.nodes.problem}")
        return
    offering = [node for node in facts.nodes.items if _offers(node)]
    running = [one for one in facts.daemon_sets.items if _is_plugin(one)]
    driver = any(objects.text(one, "spec", "driver") == _DRA_DRIVER for one in facts.resource_slices.items)
    if offering:
        yield Finding(Mark.OK, PLUGIN, f"{_nodes(len(offering))} GPUs as an extended resource")
    elif running:
        name, namespace = (objects.text(running[0], "metadata", part) for part in ("name", "namespace"))
        yield Finding(
            Mark.BAD,
            PLUGIN,
            f"the DaemonSet {namespace}/{name} runs, but no node offers {GPU_RESOURCE}: read its log, run nvidia-smi "
            "on a node, and check the DaemonSet's node selector and tolerations",
        )
    elif driver:
        yield Finding(
            Mark.BAD,
            PLUGIN,
            f"the driver {_DRA_DRIVER} offers the GPUs by DRA only: on Kubernetes 1.36 set extendedResourceName: "
            f"{GPU_RESOURCE} in their DeviceClass and declare them in gpuPools, or run the NVIDIA device plugin",
        )
    else:
        unseen = f" ({facts.daemon_sets.problem})" if facts.daemon_sets.problem else ""
        yield Finding(
            Mark.BAD,
            PLUGIN,
            f"no node offers {GPU_RESOURCE}, and no DaemonSet of the NVIDIA device plugin was found{unseen}: install "
            "the NVIDIA GPU operator, or the device plugin and GPU feature discovery",
        )


def _offer(product: GpuProduct) -> str:
    nodes = f"on {product.nodes} node{'' if product.nodes == 1 else 's'}" if product.nodes else "declared in gpuPools"
    return f"{product.gpus_per_node} x {product.product} ({product.memory_mib} MiB each) {nodes}"


def _nodes(count: int) -> str:
    return f"{count} node offers" if count == 1 else f"{count} nodes offer"


def _offers(node: objects.Object) -> bool:
    resources = objects.mapping(node, "status", "allocatable")
    return any(str(name).startswith(_RESOURCES) and str(value) != "0" for name, value in resources.items())


def _is_plugin(daemon_set: objects.Object) -> bool:
    name = objects.text(daemon_set, "metadata", "name")
    return any(plugin in name for plugin in _PLUGINS)
