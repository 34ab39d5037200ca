"""The command: options, output, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_operator.cli import doctor
from qwen_operator.cli import main as cli
from tests.unit.doctor.facts import named
from tests.unit.doctor.test_collect import FakeSource

VERSION = {"/version": {"gitVersion": "v1.36.0"}}
OBJECT = "/apis/qwen-operator.dev/v1alpha1/namespaces/default/qwendeployments/one"


class Closable(FakeSource):
    async def aclose(self) -> None:
        """Nothing is open."""


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Closable:
    """What the command connects to."""
    fake = Closable(dict(VERSION))

    async def connect(kubeconfig: str, context: str, *, user_agent: str) -> Closable:
        assert (kubeconfig, context, user_agent) == ("", "there", "qwen-operator-doctor")
        return fake

    monkeypatch.setattr(doctor, "connect_as", connect)
    return fake


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = cli(["doctor", "--context", "there", *words])
    output = capsys.readouterr()
    return code, output.out + output.err


def test_a_fault_gives_exit_code_1_and_a_line(source: Closable, capsys: pytest.CaptureFixture[str]) -> None:
    source.answers["/api/v1/nodes"] = {"items": []}
    code, output = run(capsys)
    assert code == 1
    assert "✗ gpus" in output
    assert output.splitlines()[-1].endswith("not checked")


def test_nothing_wrong_gives_exit_code_0(source: Closable, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/gpu.memory": "23034"}
    node = named("n", labels=labels, status={"allocatable": {"nvidia.com/gpu": "1"}})
    source.answers["/api/v1/nodes"] = {"items": [node]}
    code, output = run(capsys, "-o", "json")
    rows: list[dict[str, Any]] = json.loads(output)["findings"]
    assert code == 0, [row for row in rows if row["mark"] == "bad"]
    assert {
        "mark": "ok",
        "check": "kubernetes",
        "message": "Kubernetes is v1.36.0; the chart needs 1.30 or newer",
    } in rows


def test_text_of_the_cluster_cannot_write_to_the_terminal(source: Closable, capsys: pytest.CaptureFixture[str]) -> None:
    source.answers["/version"] = {"gitVersion": "v1.36.0\x1b[2J\nforged line"}
    _, output = run(capsys)
    assert "\x1b" not in output
    assert "\nforged" not in output


@pytest.mark.parametrize("name", ["qd/one", "qwendeployment/one", "one"])
def test_an_object_is_written_to_a_file(
    source: Closable, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    source.answers[OBJECT] = named("one", "default", spec={"model": "Qwen/Qwen3-8B"})
    target = tmp_path / "one.txt"
    assert run(capsys, name, "--output-file", str(target)) == (0, "")
    assert "model: Qwen/Qwen3-8B" in target.read_text()


@pytest.mark.parametrize("words", [["qd/none"], ["pod/one"], ["qd/"], ["qd/one", "--output-file", "/none/x"]])
def test_what_cannot_be_done_is_one_sentence_and_exit_code_2(
    source: Closable, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    source.answers[OBJECT] = named("one", "default")
    code, output = run(capsys, *words)
    assert code == 2
    assert output.startswith("qwen-operator doctor: ")
    assert output.count("\n") == 1


def test_an_unreachable_cluster_is_one_sentence(source: Closable, capsys: pytest.CaptureFixture[str]) -> None:
    source.answers.clear()
    code, output = run(capsys)
    assert code == 2
    assert "the cluster cannot be reached" in output
