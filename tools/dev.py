"""`make dev`: runs the operator outside the cluster, and restarts it after each change of the code.

It uses the cluster of the current kubeconfig and the settings of a release that is installed there, so it makes the
same pods as the operator of that release. It also needs the same Lease. While an operator in the cluster holds the
Lease, this one stands by and writes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from watchfiles import PythonFilter, run_process

from qwen_operator.kube import ApiError, KubeApi, Manifest, NotFound, Resource
from qwen_operator.kube.client import connect
from qwen_operator.objects import mapping

ROOT = Path(__file__).resolve().parents[1]
WATCHED = (ROOT / "operator", ROOT / "runtime")
# Not 8080: the README forwards the gateway to that port.
PORT = "8090"
# Seconds to finish writes and to release the Lease.
STOP_SECONDS = 20

DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
_CONTAINER, _VOLUME, _KEY = "operator", "config", "config.yaml"


class NoReleaseError(Exception):
    """The release cannot be read. The text says which one, and what to do."""


def main() -> int:
    """Run the operator until Ctrl-C. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make dev", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--namespace", default="qwen-system", help="namespace of the release")
    parser.add_argument("--release", default="qwen", help="name of the release")
    arguments = parser.parse_args()
    try:
        deployment, config_map = asyncio.run(_release(arguments.namespace, arguments.release))
    except (NoReleaseError, ConnectionError, ApiError) as error:
        print(error, file=sys.stderr)
        return 1
    if mapping(deployment, "spec").get("replicas"):
        name = deployment["metadata"]["name"]
        print(
            "The operator in the cluster is running, so this one stands by. To let this one take over, run:\n"
            f"    kubectl scale deployment/{name} -n {arguments.namespace} --replicas=0",
            file=sys.stderr,
        )
    with tempfile.TemporaryDirectory(prefix="qwen-dev-") as folder:
        path = Path(folder) / _KEY
        path.write_text(config_map["data"][_KEY], encoding="utf-8")
        os.environ.update(environment(deployment, path, os.environ))
        run_process(
            *WATCHED,
            target=shlex.join([str(Path(sys.executable).with_name("qwen-operator")), "run"]),
            target_type="command",
            watch_filter=PythonFilter(extra_extensions=(".json",)),
            callback=lambda changes: print(
                "Restart, because of:",
                ", ".join(sorted(str(Path(path).relative_to(ROOT)) for _, path in changes)),
                flush=True,
            ),
            sigint_timeout=STOP_SECONDS,
        )
    return 0


async def _release(namespace: str, name: str) -> tuple[Manifest, Manifest]:
    api = await connect(user_agent="qwen-operator-dev")
    try:
        return await read_release(api, namespace, name)
    finally:
        await api.aclose()


async def read_release(api: KubeApi, namespace: str, release: str) -> tuple[Manifest, Manifest]:
    """The Deployment of a release's operator, and the ConfigMap with its settings. Raises NoReleaseError."""
    name = f"{release.removesuffix('-operator')}-operator"
    try:
        deployment = await api.get(DEPLOYMENTS, namespace, name)
        return deployment, await api.get(CONFIG_MAPS, namespace, config_map_name(deployment))
    except NotFound as error:
        raise NoReleaseError(
            f"{error.message}. Install the chart into namespace {namespace} first (docs/install.md), "
            "or name your release: make dev NAMESPACE=... RELEASE=..."
        ) from error


def config_map_name(deployment: Manifest) -> str:
    """The ConfigMap that the operator's pod mounts."""
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    return next(str(volume["configMap"]["name"]) for volume in volumes if volume["name"] == _VOLUME)


def environment(deployment: Manifest, config: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of an operator with the settings of that Deployment and of the file `config`.

    Variables in `environ` that begin with QWEN_ win, as in: QWEN_LOG_LEVEL=debug make dev.
    """
    containers = deployment["spec"]["template"]["spec"]["containers"]
    container = next(container for container in containers if container["name"] == _CONTAINER)
    return {
        **{item["name"]: item["value"] for item in container["env"] if "value" in item},
        "PYTHONBREAKPOINT": "tools.breakpoint.stop",
        "QWEN_CONFIG": str(config),
        "QWEN_OPERATOR_NAMESPACE": deployment["metadata"]["namespace"],
        "QWEN_OPERATOR_PORT": PORT,
        "QWEN_POD_NAME": f"dev-{socket.gethostname()}",
        **{name: value for name, value in environ.items() if name.startswith("QWEN_")},
    }


if __name__ == "__main__":
    sys.exit(main())
