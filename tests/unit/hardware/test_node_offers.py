"""What nodes offer, from the plan's own words: nodes of public reports, and others of their kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_operator import cli
from qwen_operator.hardware.inventory import GpuPool, inventory
from qwen_operator.kube import NODES, QWENDEPLOYMENTS
from tests.unit.world import World, deployment

DATA = Path(__file__).parent / "data"
H100 = "NVIDIA-H100-80GB-HBM3"
PREFIX = "nvidia.com/gpu."
Node = dict[str, Any]


def _plan(
    capsys: pytest.CaptureFixture[str], nodes: list[Node], path: Path, model: str = "Qwen/Qwen2.5-7B-Instruct"
) -> tuple[int, str]:
    path.write_text(json.dumps({"kind": "List", "items": nodes}))
    return _planned(capsys, path, model)


def _planned(
    capsys: pytest.CaptureFixture[str], path: Path, model: str = "Qwen/Qwen2.5-7B-Instruct"
) -> tuple[int, str]:
    code = cli.main(["plan", "--model", model, "--nodes", str(path)])
    printed = capsys.readouterr()
    assert printed.err == ""
    return code, printed.out


# File, exit code, what is printed, what is not printed.
REPORTS: dict[str, tuple[int, list[str], list[str]]] = {
    "d2_mig_mixed_all": (3, [f"mig-1: {H100}: cut into MIG slices (56 x nvidia.com/mig-1g.10gb)"], ["FITS"]),
    "d10_all_unhealthy": (
        3,
        ["br-1: NVIDIA-A100-SXM4-80GB: none of 16 nvidia.com/gpu is allocatable, because the device plugin"],
        ["FITS"],
    ),
    "d1c_hami_annot": (
        0,
        ["(8 replicas on 8 GPUs)", "hami-3: HAMi shares each GPU between 10 pods, so 80 nvidia.com/gpu are 8 cards"],
        ["restart GPU feature discovery"],
    ),
    "d8g_g6f": (3, ["DOES NOT FIT", "(5 722 MiB each)", "planned with 5722"], ["NVIDIA-L4=1x2"]),
    "d4_gb10": (
        3,
        [
            "GPUs on node spark-1 (NVIDIA-GB10) carry no usable label nvidia.com/gpu.memory",
            "kubectl label node spark-1 nvidia.com/gpu.memory=MIB --overwrite",
            "the memory that GPU and CPU share",
        ],
        ["H100", "81559", "gpu.product=", "nvidia-smi"],
    ),
    "d3_ts_shared": (3, ["ts-1: Tesla-T4-SHARED is shared between pods"], ["FITS"]),
    "d9b_mixed_cluster": (0, ["FITS", "1 x NVIDIA-L4 per replica, TP 1"], ["left out", "note  "]),
    "h20_taints_bad": (3, ["y: spec.taints[0] is 'x', it must be an object with key and effect"], ["FITS"]),
}


@pytest.mark.parametrize(("file", "report"), REPORTS.items(), ids=REPORTS.keys())
def test_nodes_of_public_reports(
    capsys: pytest.CaptureFixture[str], file: str, report: tuple[int, list[str], list[str]]
) -> None:
    code, printed = _planned(capsys, DATA / f"{file}.json")
    assert code == report[0]
    for words in report[1]:
        assert words in printed
    for words in report[2]:
        assert words not in printed


def _node(name: str = "n", product: str = H100, gpus: str | None = "8", **changes: Any) -> Node:
    """A node with one label for the product and whatever labels, resources and annotations are added."""
    labels = {f"{PREFIX}product": product, f"{PREFIX}memory": "81559"} | changes.get("labels", {})
    resources = {"cpu": "64"} | ({"nvidia.com/gpu": gpus} if gpus is not None else {}) | changes.get("resources", {})
    return {
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {key: value for key, value in labels.items() if value is not None},
            "annotations": changes.get("annotations", {}),
        },
        "spec": {},
        "status": {"allocatable": resources, "capacity": resources | changes.get("capacity", {})},
    }


def _karpenter(kind: str, gpu: str, memory: str) -> dict[str, str | None]:
    return {
        f"{PREFIX}product": None,
        f"{PREFIX}memory": None,
        "node.kubernetes.io/instance-type": kind,
        "karpenter.k8s.aws/instance-gpu-name": gpu,
        "karpenter.k8s.aws/instance-gpu-memory": memory,
    }


UNUSABLE: dict[str, tuple[Node, str]] = {
    "MIG, mixed, under names of shares": (
        _node(gpus="0", resources={"nvidia.com/mig-3g.40gb.shared": "8"}),
        f"n: {H100}: cut into MIG slices (8 x nvidia.com/mig-3g.40gb.shared)",
    ),
    "MIG, mixed, without the resource of whole GPUs": (
        _node(gpus=None, resources={"nvidia.com/mig-1g.10gb": "56"}),
        "cut into MIG slices (56 x nvidia.com/mig-1g.10gb)",
    ),
    "MIG, single": (_node(product=f"{H100}-MIG-1g.10gb", gpus="56"), "a MIG slice, no whole GPU"),
    "MIG, single, a layout that the plugin refuses": (
        _node(product=f"{H100}-MIG-INVALID", gpus="0", labels={f"{PREFIX}memory": "0"}),
        "MIG-INVALID: a MIG slice, no whole GPU",
    ),
    "MIG of GKE": (
        _node(
            labels={
                f"{PREFIX}product": None,
                "cloud.google.com/gke-accelerator": "nvidia-tesla-a100",
                "cloud.google.com/gke-gpu-partition-size": "1g.5gb",
            },
            gpus="7",
        ),
        "cloud.google.com/gke-gpu-partition-size=1g.5gb), and the operator plans whole GPUs by default: to use them "
        "for a small model, set spec.hardware.products: [NVIDIA-A100-SXM4-40GB-MIG-1g.5gb]; for whole GPUs, use a node "
        "pool",
    ),
    "MIG that is being configured": (
        _node(gpus="0", labels={"nvidia.com/mig.config.state": "rebooting"}),
        "MIG is being configured (nvidia.com/mig.config.state=rebooting)",
    ),
    "shares under another name": (
        _node(gpus="0", resources={"nvidia.com/gpu.shared": "32"}),
        "offered as 32 x nvidia.com/gpu.shared, which are shares of GPUs or GPUs under another name",
    ),
    "shares of Volcano": (
        _node(gpus=None, resources={"volcano.sh/vgpu-number": "80", "volcano.sh/vgpu-memory": "368544"}),
        "offered as 368544 x volcano.sh/vgpu-memory, 80 x volcano.sh/vgpu-number",
    ),
    "time-sliced by labels alone": (
        _node(gpus="32", labels={f"{PREFIX}replicas": "4", f"{PREFIX}count": "8"}),
        f"n: {H100} is shared between pods (nvidia.com/gpu.replicas=4)",
    ),
    "MPS": (_node(labels={f"{PREFIX}sharing-strategy": "mps"}), "(nvidia.com/gpu.sharing-strategy=mps)"),
    "shares without a count label": (
        _node(gpus="80"),
        "80 nvidia.com/gpu are more than the 32 GPUs of the largest node",
    ),
    "a thousand shares": (_node(gpus="1k"), "1000 nvidia.com/gpu are more than the 32 GPUs"),
    "no resource: DRA only, or no device plugin": (
        _node(gpus=None, labels={f"{PREFIX}count": "8"}),
        "labels name GPUs, but the node does not list the resource nvidia.com/gpu, which engines ask for: run the "
        "NVIDIA device plugin there; if DRA offers the GPUs",
    ),
    "a zero after the plugin has gone": (
        _node(gpus="0", labels={f"{PREFIX}count": "8"}),
        "labels name GPUs, but the node has 0 nvidia.com/gpu",
    ),
    "a GPU without driver": (
        _node(
            gpus=None,
            labels={
                f"{PREFIX}product": None,
                f"{PREFIX}memory": None,
                "feature.node.kubernetes.io/pci-0302_10de.present": "true",
            },
        ),
        "its GPUs: labels name GPUs, but the node does not list the resource nvidia.com/gpu",
    ),
    "another maker": (
        _node(gpus=None, labels={f"{PREFIX}product": None}, resources={"amd.com/gpu": "8"}),
        "n: 8 x amd.com/gpu: the operator plans NVIDIA GPUs only",
    ),
    "Ascend": (
        _node(gpus=None, labels={f"{PREFIX}product": None}, resources={"huawei.com/Ascend910B": "8"}),
        "n: 8 x huawei.com/Ascend910B: the operator plans NVIDIA GPUs only",
    ),
    "MetaX, whose resource is called gpu": (
        _node(gpus=None, labels={f"{PREFIX}product": None}, resources={"metax-tech.com/gpu": "8"}),
        "n: 8 x metax-tech.com/gpu: the operator plans NVIDIA GPUs only",
    ),
    "partitions of an MI300X": (
        _node(gpus=None, labels={f"{PREFIX}product": None}, resources={"amd.com/cpx_nps4": "64"}),
        "n: 64 x amd.com/cpx_nps4: the operator plans NVIDIA GPUs only",
    ),
    "shares of Tencent, without labels": (
        _node(
            gpus="0",
            labels=dict.fromkeys((f"{PREFIX}product", f"{PREFIX}memory")),
            resources={"tke.cloud.tencent.com/qgpu-core": "800"},
        ),
        "its GPUs: offered as 800 x tke.cloud.tencent.com/qgpu-core, which are shares of GPUs",
    ),
    "MIG that could not be configured": (
        _node(gpus="0", labels={"nvidia.com/mig.config.state": "failed"}),
        "MIG could not be configured (nvidia.com/mig.config.state=failed): read the MIG manager's log",
    ),
    "GPUs that KubeVirt passes through": (
        _node(gpus=None, resources={"nvidia.com/GA102GL_A10": "2"}),
        "offered as 2 x nvidia.com/GA102GL_A10",
    ),
    "a number that is none": (_node(gpus="many"), "nvidia.com/gpu is 'many' in status.allocatable"),
    "less than one GPU of HAMi": (
        _node(gpus="5", annotations={"hami.io/node-nvidia-register": "GPU-0,10,81559,100,NVIDIA-H100,0,true:"}),
        "5 nvidia.com/gpu are less than one GPU, which HAMi shares between 10 pods",
    ),
}


@pytest.mark.parametrize(("node", "says"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_gpus_that_cannot_be_used_have_a_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, node: Node, says: str
) -> None:
    code, printed = _plan(capsys, [node], tmp_path / "nodes.json")
    assert (code, "FITS" in printed) == (3, False)
    assert says in printed
    # It hides no other node.
    code, printed = _plan(capsys, [node, _node("whole")], tmp_path / "nodes.json")
    assert (code, says in printed) == (0, True)
    assert "(8 replicas on 8 GPUs)" in printed


HAMI_JSON = json.dumps(
    [{"id": f"GPU-{index}", "count": 10, "devmem": 46068, "type": "NVIDIA A40", "health": True} for index in range(8)]
)
# Node, GPUs, memory of one, the notes' words.
PLANNED: dict[str, tuple[Node, int, int, list[str]]] = {
    "HAMi, new annotation, no count label": (
        _node(
            product="NVIDIA-A40",
            gpus="80",
            labels={f"{PREFIX}memory": "46068"},
            annotations={"hami.io/node-nvidia-register": HAMI_JSON},
        ),
        8,
        46068,
        ["HAMi shares each GPU between 10 pods"],
    ),
    "HAMi under its old name, less memory": (
        _node(gpus="16", annotations={"4pd.io/node-nvidia-register": "GPU-0,2,40000,100,NVIDIA-H100,0,true:"}),
        8,
        40000,
        ["HAMi shares each GPU between 2 pods", "HAMi registers 40000 MiB per GPU"],
    ),
    "HAMi that promises more memory than there is": (
        _node(gpus="16", annotations={"hami.io/node-nvidia-register": "GPU-0,2,163118,100,NVIDIA-H100,0,true:"}),
        8,
        81559,
        ["HAMi shares"],
    ),
    "another sharer": (
        _node(gpus="80", labels={f"{PREFIX}count": "8"}),
        8,
        81559,
        ["nvidia.com/gpu.count is 8, but the node offers 80 nvidia.com/gpu: planned with 8, because pods may share"],
    ),
    "another sharer, the count label of a cloud": (
        _node(gpus="4", labels={"karpenter.k8s.aws/instance-gpu-count": "1"}),
        1,
        81559,
        ["karpenter.k8s.aws/instance-gpu-count is 1"],
    ),
    # volcano-sh/devices#42: the shares of Volcano beside what another plugin offered before.
    "whole GPUs and shares of them": (
        _node(gpus="8", resources={"volcano.sh/vgpu-number": "80"}),
        8,
        81559,
        ["its GPUs are also offered as 80 x volcano.sh/vgpu-number, so other pods may use the GPU of an engine"],
    ),
    # Sold in China: the name of a 4090, and twice its memory.
    "a rebuilt RTX 4090": (
        _node(product="NVIDIA-GeForce-RTX-4090", gpus="8", labels={f"{PREFIX}memory": "49140"}),
        8,
        49140,
        ["has 24564 MiB, or 49140 if it was rebuilt: planned with 49140"],
    ),
    "some GPUs cut": (
        _node(gpus="4", labels={f"{PREFIX}count": "8"}, resources={"nvidia.com/mig-1g.10gb": "28"}),
        4,
        81559,
        ["its other GPUs are cut into MIG slices (28 x nvidia.com/mig-1g.10gb)"],
    ),
    "some GPUs unhealthy": (_node(gpus="6", capacity={"nvidia.com/gpu": "8"}), 6, 81559, ["only 6 of 8"]),
    "a fraction by its instance type": (
        _node(gpus="1", labels=_karpenter("g6f.xlarge", "l4", "22888")),
        1,
        2861,
        ["node.kubernetes.io/instance-type=g6f.xlarge has a part of a GPU, with 2861 MiB per GPU"],
    ),
    "a fraction by the label of EKS": (
        _node(
            gpus="1",
            labels={
                f"{PREFIX}product": None,
                f"{PREFIX}memory": None,
                "eks.amazonaws.com/instance-gpu-name": "l4",
                "eks.amazonaws.com/instance-gpu-memory": "11444",
            },
        ),
        1,
        11444,
        ["eks.amazonaws.com/instance-gpu-memory says 11444 MiB per GPU"],
    ),
    "a product label of a larger board than the cloud's": (
        _node(gpus="1", labels={"node.kubernetes.io/instance-type": "g6.2xlarge"}),
        1,
        23034,
        ["node.kubernetes.io/instance-type=g6.2xlarge names the NVIDIA-L4, with 23034 MiB per GPU"],
    ),
    "a vGPU": (
        _node(
            product="NVIDIA-A40-24C", gpus="1", labels={f"{PREFIX}memory": "24576", "nvidia.com/vgpu.present": "true"}
        ),
        1,
        24576,
        ["NVIDIA-A40-24C is a vGPU"],
    ),
    "unified memory with its label": (
        _node(product="NVIDIA-GB10", gpus="1", labels={f"{PREFIX}memory": "98304"}, resources={"memory": "120Gi"}),
        1,
        98304,
        [],
    ),
    "unified memory with a label beyond the node's memory": (
        _node(product="NVIDIA-GB10", gpus="1", labels={f"{PREFIX}memory": "122000"}, resources={"memory": "64Gi"}),
        1,
        65536,
        ["GPU and CPU share the memory of the node, which has 65536 MiB per GPU"],
    ),
    "an unknown board by its labels": (
        _node(product="NVIDIA-X1-96GB", gpus="4", labels={f"{PREFIX}memory": "98304"}),
        4,
        98304,
        [],
    ),
    "an unknown board by the labels of a cloud": (
        _node(gpus="4", labels=_karpenter("g9.xlarge", "x1", "98304")),
        4,
        98304,
        [],
    ),
    "a label without quotes": (
        _node(labels={f"{PREFIX}memory": 81559}),
        8,
        81559,
        ["the value of label nvidia.com/gpu.memory is 81559 without quotes"],
    ),
}


@pytest.mark.parametrize(("node", "gpus", "mib", "says"), PLANNED.values(), ids=PLANNED.keys())
def test_the_smaller_promise_counts_and_a_note_says_why(node: Node, gpus: int, mib: int, says: list[str]) -> None:
    seen = inventory([node], [])
    (product,) = seen.products
    assert (product.gpus_per_node, product.memory_mib) == (gpus, mib)
    assert len(seen.notes) == len(says)
    for words in says:
        assert any(words in note for note in seen.notes)


LACKING: dict[str, tuple[Node, str]] = {
    "a memory of 0": (
        _node(product="NVIDIA-GB10", gpus="1", labels={f"{PREFIX}memory": "0"}, resources={"memory": "125829120Ki"}),
        "kubectl label node n nvidia.com/gpu.memory=MIB --overwrite, with the MiB that engines may use of the memory "
        "that GPU and CPU share: at most 122880, the node's allocatable memory",
    ),
    "an unknown board without memory": (
        _node(product="NVIDIA-X1", gpus="1", labels={f"{PREFIX}memory": None}),
        "GPUs on node n (NVIDIA-X1) carry no usable label nvidia.com/gpu.memory. Run GPU feature discovery, or: "
        "kubectl label node n nvidia.com/gpu.memory=MIB --overwrite, with what nvidia-smi --query-gpu=memory.total",
    ),
    "a memory in bytes": (
        _node(product="NVIDIA-X1", gpus="1", labels={f"{PREFIX}memory": "85520809984"}),
        "carry no usable label nvidia.com/gpu.memory.",
    ),
    "no product": (
        _node(gpus="1", labels={f"{PREFIX}product": None}),
        "GPUs on node n carry no usable label nvidia.com/gpu.product. Run GPU feature discovery, or: kubectl "
        "label node n nvidia.com/gpu.product=PRODUCT --overwrite, with what nvidia-smi --query-gpu=name",
    ),
}


@pytest.mark.parametrize(("node", "says"), LACKING.values(), ids=LACKING.keys())
def test_only_labels_that_are_missing_are_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, node: Node, says: str
) -> None:
    code, printed = _plan(capsys, [node], tmp_path / "nodes.json")
    assert code == 3
    assert says in printed
    assert "H100" not in printed


MALFORMED: dict[str, tuple[Any, str]] = {
    "taint is text": ({"spec": {"taints": ["x", None]}}, "spec.taints[0] is 'x', it must be an object"),
    "taint is null": ({"spec": {"taints": [None]}}, "spec.taints[0] is null"),
    "taint without key": ({"spec": {"taints": [{"effect": "NoSchedule"}]}}, "spec.taints[0].key is null"),
    "effect of no kind": (
        {"spec": {"taints": [{"key": "a", "effect": "Never"}]}},
        "spec.taints[0].effect is 'Never', it must be one of NoSchedule",
    ),
    "taints are an object": ({"spec": {"taints": {"key": "a"}}}, "spec.taints is an object, it must be a list"),
    "labels are a list": ({"metadata": {"name": "bad", "labels": ["a=b"]}}, "metadata.labels is a list, it must be"),
    "a label is a list": (
        {"metadata": {"name": "bad", "labels": {"a": ["b"]}}},
        "the value of label a is a list, it must be text",
    ),
    "allocatable is a list": ({"status": {"allocatable": [8]}}, "status.allocatable is a list"),
    "capacity is text": ({"status": {"capacity": "8"}}, "status.capacity is '8'"),
    "status is text": ({"status": "Ready"}, "status is 'Ready'"),
    "spec is a number": ({"spec": 5}, "spec is 5, it must be an object"),
    "annotations are text": (
        {"metadata": {"name": "bad", "annotations": "none"}},
        "metadata.annotations is 'none', it must be an object",
    ),
}


@pytest.mark.parametrize(("members", "says"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_node_has_a_sentence_and_hides_no_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, members: dict[str, Any], says: str
) -> None:
    bad = _node("bad") | members
    code, printed = _plan(capsys, [bad], tmp_path / "nodes.json")
    assert (code, "bad: " + says in printed) == (3, True)
    code, printed = _plan(capsys, [bad, _node("good")], tmp_path / "nodes.json")
    assert (code, "bad: " + says in printed, "(8 replicas on 8 GPUs)" in printed) == (0, True, True)


def test_whole_boards_and_parts_of_them_have_selectors_of_their_own() -> None:
    """Both kinds of node carry the label of the L4. A pod for a whole one must not run on a part."""
    whole = _node("whole", gpus="1", labels=_karpenter("g6.2xlarge", "l4", "22888"))
    part = _node("part", gpus="1", labels=_karpenter("g6f.2xlarge", "l4", "5722"))
    seen = {one.memory_mib: one.selector for one in inventory([whole, part], []).products}
    assert seen == {
        5722: {"node.kubernetes.io/instance-type": "g6f.2xlarge"},
        23034: {
            "karpenter.k8s.aws/instance-gpu-name": "l4",
            "karpenter.k8s.aws/instance-gpu-memory": "22888",
        },
    }
    alone = inventory([whole], []).products[0]
    assert alone.selector == {"karpenter.k8s.aws/instance-gpu-name": "l4"}


def test_nodes_that_no_label_tells_apart_count_with_the_smaller_memory() -> None:
    hami = {"hami.io/node-nvidia-register": "GPU-0,2,40000,100,NVIDIA-H100,0,true:"}
    seen = inventory([_node("a"), _node("b", gpus="16", annotations=hami)], [])
    assert [(one.memory_mib, one.nodes, one.gpus_per_node) for one in seen.products] == [(40000, 2, 8)]
    assert any(f"a: no label tells {H100} with 81559 MiB from other nodes with 40000" in note for note in seen.notes)


def test_a_pool_joins_whole_boards_rather_than_parts() -> None:
    part = _node("part", labels={f"{PREFIX}memory": "40000"})
    pool = GpuPool("p", H100, 81559, 8, max_nodes=3)
    seen = inventory([_node("whole"), part], [pool]).products
    assert sorted((one.memory_mib, one.declared, one.full_nodes) for one in seen) == [
        (40000, False, 1),
        (81559, True, 3),
    ]
    assert [one.memory_mib for one in inventory([part], [pool]).products] == [40000]


def test_a_board_that_nobody_checked_is_named_in_the_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    product = "NVIDIA-GeForce-RTX-5090"
    node = _node(product=product, gpus="1", labels={f"{PREFIX}memory": "32607"})
    code, printed = _plan(capsys, [node], tmp_path / "nodes.json")
    assert code == 0
    assert (
        f"not checked: the operator knows {product} from general knowledge only (32607 MiB, compute capability"
        in printed
    )
    code, printed = _plan(capsys, [_node()], tmp_path / "nodes.json")
    assert (code, "not checked" in printed) == (0, False)


def test_a_fraction_is_not_offered_as_more_nodes_of_the_whole_board(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    part = _node(labels=_karpenter("g6f.2xlarge", "l4", "5722"), gpus="1")
    code, printed = _plan(capsys, [part], tmp_path / "nodes.json", "Qwen/Qwen2.5-14B-Instruct")
    assert (code, "nodes NVIDIA-L4=" in printed) == (3, False)


def test_items_that_are_no_nodes_hide_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "nodes.json"
    path.write_text(json.dumps({"kind": "List", "items": ["x", None, _node("good")]}))
    code, printed = _planned(capsys, path)
    assert (code, "? and 1 more node: is no object" in printed) == (0, True)


def test_yaml_with_keys_that_are_numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "nodes.yaml"
    bad = "{metadata: {name: bad, labels: {5: 6}}, status: {allocatable: {7: 8, nvidia.com/gpu: 2}}}"
    path.write_text(f"items:\n- {bad}\n- {json.dumps(_node('good'))}\n")
    code, printed = _planned(capsys, path)
    assert (code, "(8 replicas on 8 GPUs)" in printed) == (0, True)


async def test_the_operator_reads_the_same_nodes() -> None:
    """Its cache keeps what the reading needs: HAMi's annotation, the resources, and the form of a bad node."""
    world = World()
    for file in REPORTS:
        for node in json.loads((DATA / f"{file}.json").read_text())["items"]:
            world.api.put(NODES, node)
    bad = _node("bad") | {"spec": {"taints": ["x"]}, "status": {"allocatable": [8]}}
    world.api.put(NODES, bad)
    await world.start()
    world.api.put(QWENDEPLOYMENTS, deployment(hardware={"products": ["A40"]}, parallelism={"tensor": 8}))
    world.api.put(QWENDEPLOYMENTS, deployment("many", hardware={"products": ["A40"]}, parallelism={"tensor": 16}))
    await world.settle()
    assert world.conditions("chat")["Ready"] == ("True", "Serving")
    assert "one replica can have at most 8 GPUs here" in world.message("Planned", "many")


_KEYS = (
    f"{PREFIX}product",
    f"{PREFIX}count",
    f"{PREFIX}memory",
    f"{PREFIX}replicas",
    "karpenter.k8s.aws/instance-gpu-count",
    "karpenter.k8s.aws/instance-gpu-name",
    "karpenter.k8s.aws/instance-gpu-memory",
    "node.kubernetes.io/instance-type",
    "cloud.google.com/gke-accelerator",
)
_WORDS = st.sampled_from(
    [
        H100,
        "NVIDIA-GB10",
        "l4",
        "g6f.large",
        "nvidia-l4",
        "0",
        "1",
        "4",
        "8",
        "16",
        "81559",
        "5722",
        "-1",
        "1e3",
        "1k",
        "x",
        "",
    ]
)
_AMOUNTS: st.SearchStrategy[Any] = st.sampled_from(
    [None, 0, "0", 1, "1", "7", "8", "80", "1k", "8e0", "many", "-8", [], True]
)
_REGISTERED = st.sampled_from(
    ["", "GPU-0,10,46068,100,A40,0,true:", "GPU-0,x,y,100,A40,0,true:", HAMI_JSON, "[", "[1]"]
)
_NODES = st.builds(
    lambda labels, gpu, capacity, slices, text: {
        "metadata": {"name": "n", "labels": labels, "annotations": {"hami.io/node-nvidia-register": text}},
        "status": {
            "allocatable": {"nvidia.com/gpu": gpu, "nvidia.com/mig-1g.10gb": slices},
            "capacity": {"nvidia.com/gpu": capacity},
        },
    },
    st.dictionaries(st.sampled_from(_KEYS), _WORDS),
    _AMOUNTS,
    _AMOUNTS,
    _AMOUNTS,
    _REGISTERED,
)
_NUMBERS = {"1": 1, "4": 4, "8": 8, "16": 16, "7": 7, "80": 80, "1k": 1000, "1e3": 1000, "8e0": 8}


@given(_NODES)
def test_a_node_never_yields_more_gpus_than_it_offers(node: Node) -> None:
    """The least of what is allocatable and of the labels that state a number of GPUs."""
    labels = node["metadata"]["labels"]
    allocatable = _NUMBERS.get(str(node["status"]["allocatable"]["nvidia.com/gpu"]), 0)
    counts = (labels.get(key, "") for key in (f"{PREFIX}count", "karpenter.k8s.aws/instance-gpu-count"))
    most = min([allocatable, *(_NUMBERS[text] for text in counts if text in _NUMBERS)])
    seen = inventory([node], [])
    assert sum(one.gpus_per_node * one.nodes for one in seen.products) <= most
    if allocatable:
        assert seen.products or seen.ignored or seen.unlabelled


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["metadata", "labels", "name", "spec", "taints", "status", "allocatable", "nvidia.com/gpu", *_KEYS]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(_JSON, max_size=4))
def test_whatever_stands_beside_it_a_good_node_counts(others: list[Any]) -> None:
    seen = inventory([*others, _node("good")], [])
    assert any(one.product == H100 and one.gpus_per_node >= 8 for one in seen.products)
