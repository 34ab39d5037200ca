"""What `install` does with a release that an interrupted run left. Helm is a script that notes how it was called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from tests.testbed import bed
from tests.testbed.cache import StepFailed
from tests.testbed.cluster import Cluster

HELM = """#!/bin/sh
echo "$1" >> {folder}/calls
case "$1" in
  status) [ -s {folder}/status ] || exit 1; printf '{{"info": {{"status": "%s"}}}}' "$(cat {folder}/status)";;
  {fails}) echo "it fails" >&2; exit 1;;
esac
"""


@dataclass
class Bed:
    bin_dir: Path
    kubeconfig: Path = Path("none")

    def environment(self) -> dict[str, str]:
        return {}

    def calls(self) -> list[str]:
        return (self.bin_dir / "calls").read_text(encoding="utf-8").split()


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bed:
    monkeypatch.setenv("QWEN_TESTBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bed, "roll_by_content", tuple)
    return Bed(tmp_path)


def install(found: Bed, status: str, fails: str = "nothing") -> None:
    helm = found.bin_dir / "helm"
    helm.write_text(HELM.format(folder=found.bin_dir, fails=fails), encoding="utf-8")
    helm.chmod(0o755)
    (found.bin_dir / "status").write_text(status, encoding="utf-8")
    bed.install(cast("Cluster", found))


@pytest.mark.parametrize(
    ("status", "step"),
    [
        ("", []),
        ("deployed", []),
        ("failed", []),
        ("pending-install", ["uninstall"]),
        ("pending-upgrade", ["rollback"]),
        ("pending-rollback", ["rollback"]),
    ],
)
def test_what_an_interrupted_run_left_is_ended_and_told(
    found: Bed, status: str, step: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    install(found, status)
    assert found.calls() == ["status", *step, "upgrade"]
    assert bool(step) == (f"an interrupted run left the release {status}" in capsys.readouterr().err)


def test_if_that_fails_nothing_is_installed(found: Bed) -> None:
    with pytest.raises(StepFailed, match="helm rollback did not end the release that is pending-upgrade: it fails"):
        install(found, "pending-upgrade", fails="rollback")
    assert found.calls() == ["status", "rollback"]
