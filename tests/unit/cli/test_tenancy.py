"""`qwen-operator tenancy`: what an upgrade would refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_operator import cli


def _run(capsys: pytest.CaptureFixture[str], path: Path, objects: Any, *words: str) -> tuple[int, str, str]:
    path.write_text(json.dumps(objects))
    code = cli.main(["tenancy", "-f", str(path), *words])
    out, err = capsys.readouterr()
    return code, out, err


def _object(name: str, **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "team"}
    return {"kind": "QwenDeployment", "metadata": metadata, "spec": {"model": "Qwen/Qwen1.5-7B-Chat", **spec}}


BAD = _object("bad", pod={"serviceAccountName": "builder", "priorityClassName": "high"})


def test_nothing_to_say(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = _run(capsys, tmp_path / "qd.json", _object("good"))
    assert (code, out) == (0, "0 of 1 QwenDeployments ask for more than tenancy allows\n")


def test_each_object_with_its_reasons_and_the_values_that_exempt_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    listed = {"kind": "List", "items": [_object("good"), BAD, _object("wrong", nothing=1)]}
    code, out, _ = _run(capsys, tmp_path / "qd.json", listed)
    lines = out.splitlines()
    assert code == 3
    assert lines[0].startswith("team/bad: spec.pod.priorityClassName: 'high' is not allowed here")
    assert lines[1].startswith("team/bad: spec.pod.serviceAccountName: 'builder' is not allowed here")
    assert lines[2].startswith("team/wrong: the spec is not valid: spec.nothing: there is no such field")
    assert lines[3] == "2 of 3 QwenDeployments ask for more than tenancy allows"
    values = tmp_path / "values.yaml"
    values.write_text(out.partition("\n\n")[2])
    assert yaml.safe_load(values.read_text()) == {"tenancy": {"exempt": ["team/bad", "team/wrong"]}}
    assert _run(capsys, tmp_path / "qd.json", BAD, "--config", str(values))[0] == 0


@pytest.mark.parametrize(
    "tenancy", [{"mode": "trusted"}, {"serviceAccounts": ["builder"], "priorityClasses": ["high"]}]
)
def test_the_values_decide(capsys: pytest.CaptureFixture[str], tmp_path: Path, tenancy: dict[str, Any]) -> None:
    values = tmp_path / "values.json"
    values.write_text(json.dumps({"tenancy": tenancy}))
    assert _run(capsys, tmp_path / "qd.json", BAD, "--config", str(values))[0] == 0


@pytest.mark.parametrize("objects", [{"kind": "Pod"}, [], {"items": 7}])
def test_other_input_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path, objects: Any) -> None:
    code, _, err = _run(capsys, tmp_path / "qd.json", objects)
    assert code == 2
    assert "has no object of kind QwenDeployment" in err


def test_wrong_values_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    values = tmp_path / "values.json"
    values.write_text(json.dumps({"tenancy": {"env": ["A*B"]}}))
    code, _, err = _run(capsys, tmp_path / "qd.json", BAD, "--config", str(values))
    assert code == 2
    assert "tenancy.env is a list: it must be a list of names" in err


def test_models_that_are_not_listed_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    values = tmp_path / "values.json"
    values.write_text(json.dumps({"tenancy": {"namespaces": {"team": {"models": ["hf://Qwen/*"]}}}}))
    other, mirrored = _object("other", source={"uri": "pvc://own/chat"}), {"hub": {"default": "modelscope"}}
    code, out, _ = _run(capsys, tmp_path / "qd.json", [_object("good"), other], "--config", str(values))
    assert code == 3
    assert out.splitlines()[0].startswith("team/other: spec.source: 'pvc://own/chat' is not allowed here: ")
    assert "1 of 2 QwenDeployments ask for more than tenancy allows" in out
    values.write_text(json.dumps({**json.loads(values.read_text()), **mirrored}))
    _, out, _ = _run(capsys, tmp_path / "qd.json", _object("good"), "--config", str(values))
    assert out.startswith("team/good: spec.model: 'modelscope://Qwen/Qwen1.5-7B-Chat' is not allowed here: ")
