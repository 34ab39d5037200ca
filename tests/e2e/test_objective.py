"""The policy Objective on the real engine: it adds a replica before a queue shows, and nothing is lost by it.

The engine has slots for all requests. What breaks is the time per token: each stream slows down all others.
The test measures first how fast an engine is on this machine, and derives the objective and the load from that.
"""

from __future__ import annotations

import base64
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import Gateway
from tests.e2e.open_loop import OpenLoop, kept_percent, running
from tests.e2e.timeline import Timeline
from tests.qd import alive, leader, qd, wait_ready
from tests.testbed.bed import Release, install
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, Manifest, wait_for
from tests.testbed.processes import pods_processes, send

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
MODEL, NAME = "e2e-objective", "paced"
TOKENS = 100
PROMPT = "hello world tell me " * 150
FIRST_SECONDS = 2.0
SLOTS = 64
BOUNDS = (6, 8, 10, 15, 20, 25, 30, 35, 40, 60, 80, 100, 200)
"""Bounds of SGLang's histogram of the time per token, in milliseconds."""
LEARN_SECONDS = 150.0
"""The policy's fit needs six blocks of 20 s with work in them."""


@pytest.fixture(scope="module")
def recorded(bed: Cluster, release: Release) -> Iterator[Release]:
    """The operator writes its looks into files."""
    yield install(bed, "--set", "operator.recording.deployments={*}")
    install(bed)


@pytest.fixture(scope="module")
def paced(kubectl: Kubectl, recorded: Release, claim_space: str) -> Iterator[str]:
    """The namespace of the QwenDeployment `paced`, with one replica that answers."""
    kubectl.apply(paced_manifest(claim_space, BOUNDS[-1], most=1))
    wait_ready(kubectl, claim_space, NAME, timeout=300)
    yield claim_space
    kubectl.run("delete", "qd", NAME, "-n", claim_space)


def paced_manifest(space: str, per_token_milliseconds: int, most: int = 2) -> Manifest:
    objective = {"timePerOutputTokenMilliseconds": per_token_milliseconds}
    return qd(
        space,
        NAME,
        model=MODEL,
        source={"uri": "pvc://models/tiny-qwen2"},
        engine={"args": [f"--max-running-requests={SLOTS}", "--max-total-tokens=65536"]},
        scaling={
            "minReplicas": 1, "maxReplicas": most, "policy": "Objective", "stabilizationSeconds": 30,
            "objective": objective,
        },
        rollout={"drainSeconds": 120},
    )  # fmt: skip


def scaling(kubectl: Kubectl, space: str) -> Manifest:
    status: Manifest = (kubectl.get("qd", NAME, space) or {}).get("status", {}).get("scaling") or {}
    return status


def queued(kubectl: Kubectl, space: str) -> int:
    """Requests that wait in the engines for a slot or for room in the cache."""
    total = 0.0
    for pod in alive(kubectl, space, NAME):
        try:
            page = httpx.get(f"http://{pod['status']['podIP']}:8000/metrics", timeout=10).text
        except (KeyError, httpx.HTTPError):
            continue
        total += sum(float(number) for number in re.findall(r"^sglang:num_queue_reqs{.*} (\S+)$", page, re.MULTILINE))
    return int(total)


def speed(loop: OpenLoop, rate: float, seconds: float) -> float:
    """The median time per token, in milliseconds, of streams at that rate."""
    begin = time.monotonic()
    loop.rate = rate
    time.sleep(seconds)
    loop.rate = 0
    wait_for("the streams end", lambda: loop.open == 0, 120)
    answers = [a for a in loop.answers if a.at >= begin + seconds / 3]
    return 1000 * statistics.median(a.per_token for a in answers)


def calibrated(loop: OpenLoop, line: Timeline) -> tuple[int, float]:
    """An objective that one replica keeps at a low rate, and a rate at which it does not."""
    calm = speed(loop, 1.0, LEARN_SECONDS)
    bound = next(b for b in BOUNDS if b >= 1.6 * calm)
    line.note(f"at 1 request/s: {calm:.1f} ms per token; the objective is {bound} ms")
    rate, reached = 1.5, 0.0
    while reached < 1.2 * bound and rate < 20:
        rate *= 1.15
        reached = speed(loop, rate, 15)
        line.note(f"at {rate:.1f} requests/s: {reached:.1f} ms per token")
    return bound, rate


@pytest.mark.timeout(1500)
def test_late_tokens_make_a_second_replica_before_a_queue_shows(
    kubectl: Kubectl, gateway: Gateway, paced: str, recorded: Release
) -> None:
    line = Timeline()
    with running(OpenLoop(gateway, MODEL, TOKENS, PROMPT)) as loop:
        bound, rate = calibrated(loop, line)
        per_token = bound / 1000
        # The policy looks back at the prompts of a minute.
        time.sleep(75)
        kubectl.apply(paced_manifest(paced, bound))
        time.sleep(15)
        assert len(alive(kubectl, paced, NAME)) == 1
        begin = time.monotonic()
        loop.rate = rate
        line.note(f"{rate:.1f} requests/s from now on, at random instants")
        longest = 0
        decision: Manifest = {}
        while not decision:
            longest = max(longest, queued(kubectl, paced))
            status = scaling(kubectl, paced)
            decision = status if status.get("wanted") == 2 else {}
            assert time.monotonic() < begin + 180, status
        decided = time.monotonic()
        line.note(f"decision: {decision['message']}")
        line.note(f"the longest queue until then: {longest}; {loop.open} streams are open, {SLOTS} run at once")
        arguments = ("--for=jsonpath={.status.readyReplicas}=2", "--timeout=300s")
        kubectl.run("wait", f"qd/{NAME}", "-n", paced, *arguments, timeout=320)
        ready = time.monotonic()
        line.note(f"two replicas answer, {ready - decided:.0f} s after the decision")
        time.sleep(60)
        kept = _operator_killed_at_the_peak(kubectl, recorded, paced, line)
        time.sleep(30)
        ended = time.monotonic()
        loop.rate = 0
        line.note("no load any more")
        before = [a for a in loop.answers if begin <= a.at < ready]
        after = [a for a in loop.answers if ready + 10 <= a.at < ended]
        for words, answers in (("before", before), ("after", after)):
            percent = kept_percent(answers, FIRST_SECONDS, per_token)
            middle = 1000 * statistics.median(a.per_token for a in answers)
            line.note(
                f"{words}: {percent:.1f} % of {len(answers)} kept the objective; median {middle:.1f} ms per token"
            )
        wait_for("one is wanted", lambda: scaling(kubectl, paced).get("wanted") == 1, 180)
        line.note(f"decision: {scaling(kubectl, paced)['message']}")
        wait_for("one pod", lambda: len(alive(kubectl, paced, NAME)) == 1, 120)
        line.note("drained to one pod")
    problems = [a.problem for a in loop.answers if a.problem]
    line.note(f"{len(loop.answers)} requests, {len(problems)} lost")
    line.note(f"status: {json.dumps(scaling(kubectl, paced))}")
    assert problems == []
    assert longest == 0
    assert kept
    assert kept_percent(after, FIRST_SECONDS, per_token) > kept_percent(before, FIRST_SECONDS, per_token)


def _operator_killed_at_the_peak(kubectl: Kubectl, release: Release, space: str, line: Timeline) -> bool:
    """Kill the leader and look for a minute: whether the size stayed, by both the status and the pods."""
    old = leader(kubectl, release)
    send(pods_processes(old["metadata"]["uid"], "qwen-operator run"), signal.SIGKILL)
    line.note(f"leader {old['metadata']['name']} killed")
    seen, end, holders = set(), time.monotonic() + 60, set()
    while time.monotonic() < end:
        seen.add((scaling(kubectl, space).get("wanted"), len(alive(kubectl, space, NAME))))
        holders.add(_holder(kubectl, release))
        time.sleep(1)
    line.note(f"for 60 s: (wanted, pods) {sorted(seen, key=str)}; {len(holders)} processes had the Lease")
    return seen == {(2, 2)}


def _holder(kubectl: Kubectl, release: Release) -> str:
    lease = kubectl.get("lease", release.operator, release.namespace) or {}
    return str((lease.get("spec") or {}).get("holderIdentity"))


def test_a_replay_of_the_recording_gives_the_same_decisions(
    kubectl: Kubectl, recorded: Release, paced: str, tmp_path: Path
) -> None:
    """Of every operator process that led. It needs what the test before has recorded."""
    time.sleep(12)
    files = []
    for pod in kubectl.list("pods", recorded.namespace, "app.kubernetes.io/component=operator"):
        name = pod["metadata"]["name"]
        script = "cat /var/lib/qwen-operator/recording/* 2>/dev/null | base64"
        packed = kubectl.run("exec", name, "-n", recorded.namespace, "-c", "operator", "--", "sh", "-c", script)
        if packed.strip():
            files.append(tmp_path / f"{name}.jsonl.gz")
            files[-1].write_bytes(base64.b64decode(packed))
    program = str(Path(sys.executable).with_name("qwen-operator"))
    command = [program, "replay", *map(str, files), "--deployment", f"{paced}/{NAME}"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    print(text)
    counts = [(int(same), int(of)) for same, of in re.findall(r"the same decision at (\d+) of (\d+) looks", text)]
    assert len(counts) >= 2
    assert all(same == of for same, of in counts)
    other = subprocess.run([*command, "--policy", "Queue"], capture_output=True, text=True, check=True).stdout
    print("With the policy Queue instead:", other, sep="\n")
