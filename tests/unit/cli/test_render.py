"""`qwen-operator render` and `qwen-operator models`."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_operator import cli
from qwen_operator.api.spec import parse, revision_hash
from qwen_operator.checkpoints import catalog, records
from qwen_operator.cli import render
from qwen_operator.cli.inputs import Inputs
from qwen_operator.config.types import Settings
from qwen_operator.hardware.inventory import inventory
from qwen_operator.kube import CONTROLLER_REVISIONS, NODES, POD_DISRUPTION_BUDGETS, PODS, QWENDEPLOYMENTS, Resource
from qwen_operator.manifests.names import Manifest
from qwen_operator.manifests.revisions import as_stored, read_revision
from qwen_operator.planning.plan import plan
from qwen_operator.planning.types import Plan
from qwen_operator.tenancy.lists import Setting, Tenancy
from tests.unit.world import CONFIG, REPORT, World, deployment, node

SPEC = {"model": "Qwen/Qwen1.5-72B-Chat", "replicas": 2}


def _render(capsys: pytest.CaptureFixture[str], path: Path, spec: dict[str, Any], *words: str) -> tuple[int, str, str]:
    manifest = {"kind": "QwenDeployment", "metadata": {"name": "big", "namespace": "team"}, "spec": spec}
    path.write_text(json.dumps(manifest))
    code = cli.main(["render", "-f", str(path), "--gpu", "H100-80GB=8x4", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_objects_are_those_that_the_operator_makes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = _render(capsys, tmp_path / "qd.json", SPEC)
    objects = list(yaml.safe_load_all(out))
    revision = revision_hash(SPEC, {})
    assert code == 0
    assert [(one["kind"], one["metadata"]["name"]) for one in objects] == [
        ("ControllerRevision", f"big-{revision}"),
        ("PodDisruptionBudget", "big-engine"),
        ("Pod", f"big-{revision}-0"),
        ("Pod", f"big-{revision}-1"),
    ]
    pinned = read_revision(objects[0])
    assert pinned.plan.tensor_parallel == 4
    container = objects[2]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert container["resources"]["requests"] == {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "4"}
    assert set(pinned.plan.args) <= set(container["command"])


def test_a_claim_is_inspected_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = _render(capsys, tmp_path / "qd.json", {**SPEC, "source": {"uri": "pvc://models/72b"}})
    assert code == 0
    assert next(iter(yaml.safe_load_all(out)))["metadata"]["name"].endswith("-inspect")


POD = {
    "nodeSelector": {"zone": "a"},
    "tolerations": [{"key": "team", "operator": "Exists"}],
    "imagePullSecrets": [{"name": "own"}],
    "resources": {"requests": {"cpu": "8"}},
}
WANTED = {
    "a published model": {"replicas": 3},
    "files on a claim": {"model": "own/chat", "source": {"uri": "pvc://weights/chat"}},
    "one of several products": {
        "source": {"uri": "pvc://weights/chat"},
        "hardware": {"products": ["L40S", "H100-80GB"]},
        "pod": POD,
        "rollout": {"drainSeconds": 30},
    },
    "no replicas": {"replicas": 0},
    "over two nodes": {"model": "Qwen/Qwen3-Coder-480B-A35B-Instruct", "hardware": {"maxNodesPerReplica": 2}},
}


@pytest.mark.parametrize("spec", WANTED.values(), ids=WANTED.keys())
async def test_what_is_rendered_is_what_the_operator_creates(
    monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any]
) -> None:
    """The operator runs on an API in memory that has the same nodes; only what an API server adds may differ."""
    manifest = deployment(**spec)
    nodes = [node(), node("gpu-2"), node("small", 4, 46068, "NVIDIA-L40S"), node("other", 8, 23034, "NVIDIA-L4")]
    world = World(config=replace(CONFIG, tenancy=Tenancy(added={Setting.TOLERATIONS: ("team",)})))
    for item in nodes:
        world.api.put(NODES, item)
    await world.start()
    created: list[Manifest] = []
    create = world.api.create

    async def recorded(resource: Resource, new: Manifest) -> Manifest:
        if resource in (PODS, CONTROLLER_REVISIONS, POD_DISRUPTION_BUDGETS):
            created.append(new)
        return await create(resource, new)

    monkeypatch.setattr(world.api, "create", recorded)
    world.api.put(QWENDEPLOYMENTS, copy.deepcopy(manifest))
    await world.settle()

    uid = world.qd()["metadata"]["uid"]
    rendered = render.objects(_inputs(manifest, nodes), _plan(_inputs(manifest, nodes)))

    assert json.loads(json.dumps(rendered).replace(render.NO_UID, uid)) == as_stored(created)


def _inputs(manifest: Manifest, nodes: list[Manifest]) -> Inputs:
    spec = parse(manifest)
    known = catalog.lookup(spec.model) if spec.source is None else records.from_inspection(REPORT)
    assert known
    return Inputs(manifest, spec, known, inventory(nodes, ()), Settings(CONFIG.image, CONFIG.engine, ()))


def _plan(given: Inputs) -> Plan:
    result = plan(given.spec, given.checkpoint, given.inventory, given.settings.engine, given.source)
    assert isinstance(result, Plan)
    return result


@pytest.mark.parametrize(
    ("spec", "code", "says"),
    [
        ({"model": "a/b"}, 2, "a/b is not in the catalog"),
        ({"model": "Qwen/Qwen1.5-72B-Chat", "parallelism": {"tensor": 3}}, 2, "not divisible by TP 3"),
        ({"model": "Qwen/Qwen1.5-72B-Chat", "hardware": {"maxGpusPerReplica": 1}}, 3, "DoesNotFit: "),
        ({"model": "Qwen/Qwen3-Coder-480B-A35B-Instruct"}, 3, "needs 2 nodes"),
    ],
)
def test_what_cannot_be_run_is_not_rendered(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, spec: dict[str, Any], code: int, says: str
) -> None:
    exit_code, out, err = _render(capsys, tmp_path / "qd.json", spec)
    assert (exit_code, out) == (code, "")
    assert says in err


def test_models_are_listed_and_searched(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(catalog.names())
    assert cli.main(["models", "235B", "fp8"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("MODEL")
    assert any("Qwen/Qwen3-235B-A22B-FP8" in row and "8 (EP 2)" in row for row in rows)
    assert cli.main(["models", "-o", "json", "1.5-72B-Chat-AWQ"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["parallel"][-1] == {"tensor": 8, "expert": 1}
    assert cli.main(["models", "nothing-like-this"]) == 0


def test_crds_and_unknown_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["crds", "--output", str(tmp_path)]) == 0
    assert len(list(tmp_path.iterdir())) == 1
    for words in ([], ["paln"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 2


def test_the_pods_of_several_nodes_get_what_the_chart_gives(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text("engine: {multiNode: {interface: net1, hostNetwork: true}}")
    spec = {"model": "Qwen/Qwen3-Coder-480B-A35B-Instruct", "hardware": {"maxNodesPerReplica": 2}}
    code, out, err = _render(capsys, tmp_path / "qd.json", spec, "--config", str(values))
    assert code == 0, err
    pods = [one for one in yaml.safe_load_all(out) if one["kind"] == "Pod"]
    assert [pod["spec"].get("hostNetwork") for pod in pods] == [True, True]
    revision = next(one for one in yaml.safe_load_all(out) if one["kind"] == "ControllerRevision")
    assert read_revision(revision).template["spec"]["hostNetwork"] is True
    code = cli.main(["plan", "-f", str(tmp_path / "qd.json"), "--gpu", "H100-80GB=8x4", "--config", str(values)])
    text = capsys.readouterr().out
    assert code == 0
    assert "network   the chart gives each of these pods the interface net1; the network of its node (not in" in text
