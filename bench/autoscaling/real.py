"""The simulated engine beside the real one, under the same open-loop load.

    python -m bench.autoscaling.real [--seconds S] [--rates R ...]

It needs the test bed (`make testbed-up`): a tiny model on SGLang's CPU backend, behind the gateway. A first load shows
how fast the engine is, by the policy's own fit. The simulator gets that speed and the instants at which the requests of
the second load were really sent, for one replica and for two.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httpx

from bench.autoscaling.engine import Done, Engine, Request
from bench.autoscaling.engine import Speed as Simulated
from bench.autoscaling.fleet import percentiles
from qwen_operator.scaling import speed
from qwen_operator.scaling.page import Page, Reading
from qwen_operator.scaling.types import EngineLoad, Sample
from tests.e2e.conftest import Gateway
from tests.e2e.open_loop import OpenLoop, running
from tests.qd import alive, own_namespace, qd, wait_ready
from tests.testbed.bed import bring_up, install
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, wait_for
from tests.testbed.volumes import claim_manifests

MODEL, NAME = "bench-real", "real"
TOKENS, SLOTS, POOL = 100, 16, 32768
PROMPT = "hello world tell me " * 150
CALIBRATION = (0.5, 1.0, 2.0, 3.0, 1.5, 4.0, 2.5, 1.0)
"""Requests per second, each for 30 s."""


@dataclass(slots=True)
class Looks:
    """What the pages of the engines showed, once in `every` seconds, until `stop`."""

    kubectl: Kubectl
    space: str
    every: float
    samples: list[Sample] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        pods = [(str(pod["metadata"]["name"]), str(pod["status"]["podIP"])) for pod in self._pods()]
        with httpx.Client(timeout=5) as client:
            while not self._stopped.wait(self.every):
                loads = [self._load(client, *pod) for pod in pods]
                self.samples.append(Sample(time.monotonic(), tuple(load for load in loads if load is not None)))

    def stop(self) -> None:
        self._stopped.set()

    def _pods(self) -> list[dict[str, dict[str, object]]]:
        return alive(self.kubectl, self.space, NAME)

    @staticmethod
    def _load(client: httpx.Client, name: str, address: str) -> EngineLoad | None:
        with suppress(httpx.HTTPError):
            reader = Page()
            reader.feed(client.get(f"http://{address}:8000/metrics").content)
            page = reader.read(MODEL)
            if isinstance(page, Reading):
                return EngineLoad(
                    name,
                    name,
                    page.running,
                    page.queued,
                    page.tokens_used,
                    page.tokens_capacity,
                    page.inside,
                    page.work,
                )
        return None


@contextmanager
def looking(looks: Looks) -> Iterator[Looks]:
    """It looks during the block."""
    thread = threading.Thread(target=looks.run)
    thread.start()
    try:
        yield looks
    finally:
        looks.stop()
        thread.join()


@dataclass(frozen=True, slots=True)
class Row:
    """One engine or fleet under one load. Seconds at PERCENTILES.

    `queued` and `running` are means over the load, of all replicas.
    """

    who: str
    queued: float
    running: float
    first: tuple[float, ...]
    per_token: tuple[float, ...]
    tokens_per_second: float

    def line(self) -> str:
        first = ", ".join(f"{value:.2f}" for value in self.first)
        token = ", ".join(f"{1000 * value:.1f}" for value in self.per_token)
        load = f"{self.queued:.1f} | {self.running:.1f}"
        return f"| {self.who} | {load} | {first} | {token} | {self.tokens_per_second:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load (60)")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[1.5, 3.0, 4.5], help="requests per second and replica"
    )
    given = parser.parse_args()
    bed = bring_up()
    kubectl = Kubectl(bed.bin_dir / "kubectl", bed.kubeconfig)
    release = install(bed)
    address = kubectl.json("get", "service", release.gateway, "-n", release.namespace)["spec"]["clusterIP"]
    gateway = Gateway(f"http://{address}", release.key(kubectl))
    with serving(bed, kubectl) as space:
        found, prompt = calibrated(kubectl, gateway, space)
        print(f"Fit: a step {1000 * found.floor:.2f} ms, 1,000 cached tokens {1e6 * found.cached:.2f} ms, "
              f"1,000 prompt tokens {1e6 * found.prefill:.1f} ms. A prompt has {prompt} tokens.\n")  # fmt: skip
        for replicas in (1, 2):
            resize(kubectl, space, replicas)
            for rate in given.rates:
                compare(kubectl, gateway, space, Load(replicas, rate, given.seconds, prompt), found)


@contextmanager
def serving(bed: Cluster, kubectl: Kubectl) -> Iterator[str]:
    """A namespace with one replica that answers, until the block ends."""
    with own_namespace(kubectl, "b") as space:
        claims = claim_manifests("models", space, bed.models_dir)
        args = [f"--max-running-requests={SLOTS}", f"--max-total-tokens={POOL}"]
        source = {"uri": "pvc://models/tiny-qwen2"}
        kubectl.apply(*claims, qd(space, NAME, model=MODEL, source=source, engine={"args": args}, replicas=1))
        try:
            wait_ready(kubectl, space, NAME, timeout=300)
            yield space
        finally:
            kubectl.run("delete", "qd", NAME, "-n", space)
            for claim in claims:
                if claim["kind"] == "PersistentVolume":
                    kubectl.run("delete", "pv", claim["metadata"]["name"], "--wait=false")


def resize(kubectl: Kubectl, space: str, replicas: int) -> None:
    kubectl.run("scale", "qd", NAME, "-n", space, f"--replicas={replicas}")
    arguments = (f"--for=jsonpath={{.status.readyReplicas}}={replicas}", "--timeout=300s")
    kubectl.run("wait", f"qd/{NAME}", "-n", space, *arguments, timeout=320)
    time.sleep(5)


def calibrated(kubectl: Kubectl, gateway: Gateway, space: str) -> tuple[speed.Speed, int]:
    """The speed of the engine by the policy's fit, and the tokens of a prompt."""
    with looking(Looks(kubectl, space, 2.0)) as looks, running(OpenLoop(gateway, MODEL, TOKENS, PROMPT)) as loop:
        for rate in CALIBRATION:
            loop.rate = rate
            time.sleep(30)
        loop.rate = 0
        wait_for("the streams end", lambda: loop.open == 0, 120)
        time.sleep(5)
    meter = speed.Meter()
    for sample in looks.samples:
        meter = speed.observe(meter, sample)
    found = speed.measured(meter, POOL)
    work = looks.samples[-1].engines[0].work
    if found is None or work is None:
        raise SystemExit("the engine did not show its speed; is the machine too slow for this load?")
    return found, round(work.prefilled / len(loop.answers))


@dataclass(frozen=True, slots=True)
class Load:
    """`rate`: requests per second of each replica. `prompt`: tokens."""

    replicas: int
    rate: float
    seconds: float
    prompt: int


def compare(kubectl: Kubectl, gateway: Gateway, space: str, load: Load, found: speed.Speed) -> None:
    """Print what the real replicas and the simulated ones made of one load."""
    with looking(Looks(kubectl, space, 1.0)) as looks, running(OpenLoop(gateway, MODEL, TOKENS, PROMPT)) as loop:
        begun = time.monotonic()
        loop.rate = load.rate * load.replicas
        time.sleep(load.seconds)
        loop.rate, ended = 0, time.monotonic()
        wait_for("the streams end", lambda: loop.open == 0, 300)
    print(f"{load.replicas} replicas, {load.rate * load.replicas:.1f} requests/s, {len(loop.answers)} requests\n")
    lost = [answer.problem for answer in loop.answers if answer.problem]
    if lost:
        print(
            f"This load is too much for the comparison: {len(lost)} requests had no answer, as {lost[0]}\n", flush=True
        )
        return
    seen = [sample for sample in looks.samples if sample.at < ended]
    last = max(answer.at + answer.first + answer.per_token * (TOKENS - 1) for answer in loop.answers)
    real = Row(
        "SGLang",
        statistics.mean(sum(one.queued for one in sample.engines) for sample in seen),
        statistics.mean(sum(one.running for one in sample.engines) for sample in seen),
        percentiles(array("d", [answer.first for answer in loop.answers])),
        percentiles(array("d", [answer.per_token for answer in loop.answers])),
        TOKENS * len(loop.answers) / (last - begun),
    )
    arrivals = sorted(answer.at - begun for answer in loop.answers)
    print("| | queued | running | first token, s: 50, 95, 99 % | ms per token: 50, 95, 99 % | tokens/s |")
    print("|---|--:|--:|--:|--:|--:|")
    print(real.line(), simulated(arrivals, load, found).line(), sep="\n", end="\n\n", flush=True)


def simulated(arrivals: Sequence[float], load: Load, found: speed.Speed) -> Row:
    """The same requests on simulated engines, each sent to the one with the fewest."""
    done: list[Done] = []
    pace = Simulated(found.floor, found.prefill, found.cached, 0.0, POOL, SLOTS)
    engines = [Engine(pace, 0.0, done.append) for _ in range(load.replicas)]
    looks: list[tuple[int, int]] = []
    waiting = [Request(at, load.prompt, TOKENS) for at in arrivals]
    at = 0.0
    while len(done) < len(arrivals):
        at += 0.01
        while waiting and waiting[0].arrival <= at:
            request = waiting.pop(0)
            least = min(engines, key=lambda each: each.requests)
            least.advance(request.arrival)
            least.add(request)
        for engine in engines:
            engine.advance(at)
        if at <= load.seconds and round(at * 100) % 100 == 0:
            looks.append((sum(each.queued for each in engines), sum(each.running for each in engines)))
    return Row(
        "simulated",
        statistics.mean(queued for queued, _ in looks),
        statistics.mean(count for _, count in looks),
        percentiles(array("d", [one.first - one.request.arrival for one in done])),
        percentiles(array("d", [(one.last - one.first) / (TOKENS - 1) for one in done])),
        TOKENS * len(arrivals) / max(one.last for one in done),
    )


if __name__ == "__main__":
    main()
