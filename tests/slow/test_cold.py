"""The first time on a machine: a fresh clone, empty caches, one command."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.testbed.bed import REPOSITORY
from tests.testbed.cluster import Cluster

CACHES = ("QWEN_TESTBED_CACHE", "GOCACHE", "GOMODCACHE", "UV_CACHE_DIR", "PIP_CACHE_DIR")


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_demo_in_a_fresh_clone_with_empty_caches(tmp_path: Path) -> None:
    Cluster().down()
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(clone)], check=True)
    environment = {**os.environ, **{name: str(tmp_path / name) for name in CACHES}}
    environment.pop("KUBECONFIG", None)
    start = time.monotonic()

    try:
        done = subprocess.run(
            ["make", "demo"],
            cwd=clone,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        print(done.stdout[-6000:], done.stderr[-3000:], f"{time.monotonic() - start:.0f} s", sep="\n")
        assert done.returncode == 0
        assert "The answer:" in done.stdout
    finally:
        subprocess.run(["make", "testbed-down"], cwd=clone, env=environment, check=True)
        # Go keeps its module cache read-only, which pytest's own clean-up cannot remove.
        subprocess.run(["go", "clean", "-modcache"], cwd=clone, env=environment, check=True)
