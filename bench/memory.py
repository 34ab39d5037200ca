"""The peak memory of the operator and of the gateway's agent, without a cluster.

    python -m bench.memory [--objects 10000] [--largest 200] [--case ordinary|largest|hubs] [--before FOLDER]

One process per number reads from a simulated API server, or a simulated hub, on loopback. The operator lists and
watches through kopf and its own client, and decides about every object once. The agent mirrors all objects and writes
the file of workers. `--before` also measures the version in another working tree.

ordinary: QwenDeployments with one ready replica, each with its pod, ControllerRevision and PodDisruptionBudget.
largest: QwenDeployments and pods of 1.4 MB: in turn a spec within the bounds with large annotations and status, and a
spec far beyond the bounds.
hubs: three indexes of weights at once that are as large as the operator reads them, and costly to decode.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from aiohttp import web

from qwen_operator.hubs.weights import INDEX, LARGEST_INDEX
from qwen_operator.kube import (
    CONTROLLER_REVISIONS,
    POD_DISRUPTION_BUDGETS,
    PODS,
    QWENDEPLOYMENTS,
    Manifest,
    Resource,
)
from tests.unit.api_server import discovery, target_of
from tests.unit.world import World, deployment

ROOT = Path(__file__).parents[1]
LIMITS = {"operator": 512, "agent": 384, "hubs": 512}
"""MiB: the limits of the containers in the chart."""
COMMIT = "0" * 40
_OBJECT_BYTES = 1_400_000
_CHILDREN = (PODS, CONTROLLER_REVISIONS, POD_DISRUPTION_BUDGETS)
_LONGEST_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Result:
    """MiB. `peak` is None if the program did not finish, and `before` also if no other version was measured."""

    case: str
    program: str
    limit: int
    peak: float | None
    before: float | None

    @property
    def fits(self) -> bool:
        return self.peak is not None and self.peak <= self.limit

    @property
    def row(self) -> str:
        numbers = ["–" if number is None else f"{number:.0f}" for number in (self.peak, self.before)]
        factor = f"{self.before / self.peak:.1f}" if self.before and self.peak else "–"
        return f"| {self.case} | {self.program} | {self.limit} | {' | '.join(numbers)} | {factor} |"


@dataclass(frozen=True, slots=True)
class Contents:
    """JSON texts of objects by plural. "#" in a text stands for the object's number; `count` is how many there are."""

    texts: dict[str, tuple[str, ...]]
    count: int

    def page(self, plural: str, start: int, limit: int) -> Iterator[bytes]:
        """A list, as the API server answers it, in pieces of about one object."""
        texts, end = self.texts.get(plural, ()), min(start + limit, self.count)
        meta = {"resourceVersion": "1000000", **({"continue": str(end)} if texts and end < self.count else {})}
        yield f'{{"metadata":{json.dumps(meta)},"items":['.encode()
        for number in range(start, end) if texts else ():
            comma = "," if number > start else ""
            yield f"{comma}{texts[number % len(texts)].replace('#', str(number))}".encode()
        yield b"]}"


async def ordinary(count: int) -> Contents:
    """The objects of a world in which one QwenDeployment serves."""
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment("chat-0000"))
    await world.settle()
    texts: dict[str, tuple[str, ...]] = {}
    for resource in (QWENDEPLOYMENTS, *_CHILDREN):
        [item] = world.api.all(resource)
        item["metadata"]["managedFields"] = [_managed(item, name) for name in ("kubectl", "qwen-operator", "kubelet")]
        uid = world.api.all(QWENDEPLOYMENTS)[0]["metadata"]["uid"]
        text = json.dumps(item, separators=(",", ":"))
        own = text.replace(f'"uid":"{item["metadata"]["uid"]}"', f'"uid":"{resource.plural}-#"')
        texts[resource.plural] = (
            own.replace("chat-0000", "chat-#").replace(f'"{uid}"', f'"{QWENDEPLOYMENTS.plural}-#"'),
        )
    return Contents(texts, count)


def _managed(item: Manifest, manager: str) -> Manifest:
    """An entry of managedFields: it names every field of the object."""
    fields = {f"f:{part}": _named(item.get(part)) for part in ("spec", "status")}
    return {"manager": manager, "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields}


def _named(value: Any) -> Manifest:
    return {f"f:{name}": _named(member) for name, member in value.items()} if isinstance(value, dict) else {}


def largest(count: int) -> Contents:
    """Objects of _OBJECT_BYTES, in the shapes that take the most memory."""
    notes = {"qwen-operator.dev/replan": "x" * 200_000}
    within: Manifest = {"affinity": {"a": [{}] * 2000}, "nodeSelector": {}}
    beyond: Manifest = {"affinity": {"a": [{}] * (_OBJECT_BYTES // 3)}}
    conditions = [{"type": "T", "status": "S" * 10}] * 30_000
    deployments = (
        _named_object(QWENDEPLOYMENTS, notes, spec={"model": "m-#", "pod": within}, status={"conditions": conditions}),
        _named_object(QWENDEPLOYMENTS, {}, spec={"model": "m-#", "pod": beyond}),
    )
    labels = {f"l{number}": "x" * 40 for number in range(25_000)}
    pods = (
        _named_object(PODS, {}, labels, spec={}, status={"conditions": conditions}),
        _named_object(PODS, {}, spec={"containers": [{"name": "engine", "args": ["x"] * 300_000}]}),
    )
    return Contents({QWENDEPLOYMENTS.plural: deployments, PODS.plural: pods}, count)


def _named_object(resource: Resource, annotations: Manifest, labels: Manifest | None = None, **content: Any) -> str:
    owned = {"qwen-operator.dev/deployment": "chat-#", "qwen-operator.dev/role": "engine", **(labels or {})}
    uid = f"{QWENDEPLOYMENTS.plural}-#"
    meta: Manifest = {"name": "chat-#", "namespace": "team", "uid": f"{resource.plural}-#", "resourceVersion": "#"}
    if resource == PODS:
        owner = {"apiVersion": QWENDEPLOYMENTS.api_version, "kind": QWENDEPLOYMENTS.kind, "name": "chat-#", "uid": uid}
        meta |= {"ownerReferences": [{**owner, "controller": True}]}
        annotations = {**annotations, "qwen-operator.dev/owner-uid": uid}
    kind = {"apiVersion": resource.api_version, "kind": resource.kind}
    manifest = {**kind, "metadata": {**meta, "labels": owned, "annotations": annotations}, **content}
    return json.dumps(manifest, separators=(",", ":"))


def hostile_index() -> bytes:
    """An index within the limits of bytes and members, with an object as each name of a file."""
    entries = ",".join(f'"{number:x}":{{}}' for number in range(380_000))
    text = '{"metadata":{},"weight_map":{' + entries + "}"
    return (text + " " * (LARGEST_INDEX - len(text) - 2) + "}").encode()


def application(contents: Contents) -> web.Application:
    """The simulated API server and, for other paths, the simulated hub."""

    async def handle(request: web.Request) -> web.StreamResponse:
        discovered = discovery(request.path)
        if discovered is not None:
            return web.json_response(discovered)
        if "/Qwen/" in request.path:
            return _hub(request)
        plural = target_of(request.path).resource.plural
        if "watch" in request.query:
            response = web.StreamResponse()
            await response.prepare(request)
            await asyncio.sleep(3600)
            return response
        start, limit = int(request.query.get("continue", "0")), int(request.query.get("limit", contents.count))
        response = web.StreamResponse(headers={"content-type": "application/json"})
        # A program that has its numbers ends in the middle of its next list.
        with suppress(ConnectionError):
            await response.prepare(request)
            for piece in contents.page(plural, start, limit):
                await response.write(piece)
            await response.write_eof()
        return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    return app


def _hub(request: web.Request) -> web.Response:
    if request.path.endswith(INDEX):
        return web.Response(body=hostile_index())
    if request.path.endswith("config.json"):
        return web.json_response({"architectures": ["Qwen2ForCausalLM"]})
    files = [{"rfilename": name, "size": 1000} for name in ("config.json", INDEX)]
    return web.json_response({"sha": COMMIT, "siblings": files})


@contextmanager
def serving(contents: Contents) -> Iterator[str]:
    """Serve in a process of its own. Yields the address."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_serve, args=(theirs, contents), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


def _serve(pipe: Connection, contents: Contents) -> None:
    async def run() -> None:
        runner = web.AppRunner(application(contents), access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        pipe.send(site.name)
        await asyncio.Event().wait()

    asyncio.run(run())


def peak(program: str, address: str, contents: Contents, tree: Path) -> float | None:
    """MiB of the version in this working tree; None if it did not finish, whose reason is printed."""
    with tempfile.TemporaryDirectory() as folder:
        kubeconfig = Path(folder) / "kubeconfig"
        kubeconfig.write_text(json.dumps(_kubeconfig(address)))
        pods = contents.count if PODS.plural in contents.texts else 0
        paths = [str(path) for path in (tree / "operator", tree / "runtime", tree)]
        try:
            done = subprocess.run(
                [
                    sys.executable,
                    str(ROOT / "bench/memory_subject.py"),
                    program,
                    address,
                    str(contents.count),
                    str(pods),
                ],
                env={
                    **os.environ,
                    "KUBECONFIG": str(kubeconfig),
                    "PYTHONPATH": ":".join(paths),
                    "NO_PROXY": "127.0.0.1",
                },
                cwd=folder,
                capture_output=True,
                timeout=_LONGEST_SECONDS,
                check=True,
                text=True,
            )
        except subprocess.TimeoutExpired:
            print(f"{program} did not finish within {_LONGEST_SECONDS:.0f} s", file=sys.stderr)
            return None
        except subprocess.CalledProcessError as error:
            print(f"{program} ended with {error.returncode}: {error.stderr[-2000:]}", file=sys.stderr)
            return None
    return int(done.stdout.split()[-1]) / 1024


def _kubeconfig(address: str) -> Manifest:
    cluster = {"name": "c", "cluster": {"server": address}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    user = {"name": "u", "user": {"token": "token"}}
    return {"current-context": "c", "clusters": [cluster], "users": [user], "contexts": [context]}


def measure(options: argparse.Namespace) -> Iterator[Result]:
    cases = {
        "ordinary": (asyncio.run(ordinary(options.objects)), ("operator", "agent")),
        "largest": (largest(options.largest), ("operator", "agent")),
        "hubs": (Contents({}, 0), ("hubs",)),
    }
    for case, (contents, programs) in cases.items():
        if options.case not in (None, case):
            continue
        with serving(contents) as address:
            for program in programs:
                before = peak(program, address, contents, options.before) if options.before else None
                yield Result(case, program, LIMITS[program], peak(program, address, contents, ROOT), before)


def main() -> int:
    """1 if a program needed more than its limit, or did not finish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--largest", type=int, default=200)
    parser.add_argument("--case", choices=("ordinary", "largest", "hubs"))
    parser.add_argument("--before", type=Path, help="a working tree of another version")
    options = parser.parse_args()
    print("| case | program | limit MiB | peak MiB | before MiB | before / now |\n|---|---|---|---|---|---|")
    over = False
    for result in measure(options):
        print(result.row, flush=True)
        over = over or not result.fits
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
