"""The test bed itself: it leaves nothing behind, whatever happened to it. Takes a running test bed down."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.testbed.cluster import Cluster
from tests.testbed.layout import layout
from tests.testbed.policies import DAEMON
from tests.testbed.sandbox import Sandbox
from tests.testbed.teardown import snapshot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
UP = [sys.executable, "-m", "tests.testbed", "up", "--without-node"]


def traces() -> list[str]:
    """What a machine has that a test bed could leave: processes come and go by themselves, so only its own count."""
    lines = [line for line in snapshot() if not line.startswith("process:")]
    state = str(Cluster().state_dir)
    return lines + [line for line in snapshot() if line.startswith("process:") and state in line]


@pytest.fixture
def clean() -> Iterator[list[str]]:
    """The machine without a test bed; what is left of it after the test fails the test."""
    Cluster().down()
    before = traces()
    yield before
    Cluster().down()
    assert traces() == before


def test_up_twice_and_down_leaves_nothing(clean: list[str]) -> None:
    cluster = Cluster()
    cluster.up()
    running = cluster.status()["processes"]

    cluster.up()

    assert cluster.status()["processes"] == running
    assert [name for name, pids in running.items() if not pids] == [DAEMON], "policies are enforced on request only"


def test_after_a_crash_of_everything_it_comes_up_again(clean: list[str]) -> None:
    cluster = Cluster()
    cluster.up()
    for holder in Sandbox(layout()).holders():
        subprocess.run(["kill", "-9", str(holder.pid)], check=True)

    cluster.up()

    assert "node/testbed-node" in cluster.status()["nodes"]


def test_further_real_nodes_come_go_and_leave_nothing(clean: list[str]) -> None:
    cluster = Cluster()
    cluster.up()
    with cluster.more_real_nodes(2) as nodes:
        assert {f"node/{name}" for name in nodes.names} <= set(cluster.status()["nodes"])
        cluster.lose_real_node(nodes.names[0])
        cluster.return_real_node(nodes.names[0])
    assert cluster.status()["nodes"] == ["node/testbed-node"]
    cluster.keep_real_nodes(2)


def test_after_a_crash_with_a_further_node_it_comes_up_again(clean: list[str]) -> None:
    cluster = Cluster()
    cluster.up()
    cluster.keep_real_nodes(2)
    for holder in Sandbox(layout()).holders():
        subprocess.run(["kill", "-9", str(holder.pid)], check=True)

    cluster.up()

    assert cluster.status()["nodes"] == ["node/testbed-node"]


@pytest.mark.parametrize("turn", range(5))
def test_killed_on_its_way_up(clean: list[str], turn: int) -> None:
    process = subprocess.Popen(UP, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    time.sleep(random.Random(turn).uniform(0.5, 4))
    process.send_signal(signal.SIGKILL)
    process.wait()
    if turn % 2:
        Cluster().up(node=False)
        assert Cluster().is_up()
