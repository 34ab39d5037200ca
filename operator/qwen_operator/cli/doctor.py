"""`qwen-operator doctor`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from qwen_operator.cli.cluster import quiet
from qwen_operator.cli.settings import chart_settings
from qwen_operator.doctor import bundle, checks, collect
from qwen_operator.doctor.reader import Reader
from qwen_operator.doctor.types import Finding, Mark
from qwen_operator.kube.client import connect_as
from qwen_operator.untrusted import clean

_SIGNS = {Mark.OK: "✓", Mark.WARNING: "!", Mark.BAD: "✗", Mark.UNKNOWN: "?"}
_PLAIN_SIGNS = {Mark.OK: "ok", Mark.WARNING: "!!", Mark.BAD: "NO", Mark.UNKNOWN: "??"}
_LONGEST = 1000
_PREFIXES = ("qd/", "qwendeployment/", "qwendeployments/")
# All reads have limits of their own. This one also holds for a connection that hangs.
_SECONDS = 180.0


def options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("object", nargs="?", metavar="qd/NAME", help="collect all about one QwenDeployment for support")
    parser.add_argument(
        "-n",
        "--namespace",
        help="namespace of the release (default: qwen-system); with qd/NAME, that of the QwenDeployment (default: "
        "default)",
    )
    parser.add_argument("--release", default="qwen", help="name of the Helm release (default: qwen)")
    parser.add_argument(
        "--release-namespace",
        default="qwen-system",
        help="with qd/NAME: the release's namespace (default: qwen-system)",
    )
    parser.add_argument(
        "--watch-namespace",
        action="append",
        default=[],
        metavar="NAMESPACE",
        help="also check this namespace, which engines will run in; can be repeated",
    )
    parser.add_argument(
        "--dry-run-pods",
        action="store_true",
        help="let the API server admit sample pods in each namespace without storing them; needs the right to create "
        "pods",
    )
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument("--output-file", metavar="FILE", help="write to this file instead of standard output")
    parser.add_argument("--kubeconfig", default="", metavar="FILE", help="the kubeconfig (default: as for kubectl)")
    parser.add_argument("--context", default="", help="the context of the kubeconfig (default: its current one)")


def main(arguments: argparse.Namespace) -> int:
    """Check a cluster, or collect one object. Returns the exit code.

    0: nothing is wrong; 1: a check failed; 2: the cluster or the object cannot be read. Warnings, and checks that were
    not possible, do not change it.
    """
    try:
        with quiet():
            text, code = asyncio.run(asyncio.wait_for(_run(arguments), _SECONDS))
        if arguments.output_file:
            Path(arguments.output_file).write_text(text, encoding="utf-8")
        else:
            sys.stdout.write(text)
    except TimeoutError:
        return _failed(f"no result within {_SECONDS:g} s: is the API server overloaded or far away?")
    except (ConnectionError, OSError) as error:
        return _failed(clean(error, _LONGEST))
    return code


def _failed(message: str) -> int:
    sys.stderr.write(f"qwen-operator doctor: {message}\n")
    return 2


async def _run(arguments: argparse.Namespace) -> tuple[str, int]:
    api = await connect_as(arguments.kubeconfig, arguments.context, user_agent="qwen-operator-doctor")
    try:
        reader = Reader(api)
        reachable = await reader.json("/version")
        if reachable.problem:
            raise ConnectionError(f"the cluster cannot be reached: {reachable.problem}")
        return await (_object if arguments.object else _cluster)(reader, arguments)
    finally:
        await api.aclose()


async def _cluster(reader: Reader, arguments: argparse.Namespace) -> tuple[str, int]:
    request = _request(arguments, arguments.namespace or "qwen-system", tuple(arguments.watch_namespace))
    findings = checks.run(await collect.cluster(reader, request))
    code = int(any(one.mark is Mark.BAD for one in findings))
    return (_json(findings) if arguments.output == "json" else _text(findings)), code


async def _object(reader: Reader, arguments: argparse.Namespace) -> tuple[str, int]:
    name = str(arguments.object)
    name = next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)
    if not name or "/" in name:
        raise ConnectionError(f"{clean(arguments.object, 100)} names no QwenDeployment: right would be qd/NAME")
    namespace = arguments.namespace or "default"
    request = _request(arguments, arguments.release_namespace, (namespace,))
    facts = await collect.deployment(reader, request, name, version("qwen-operator"))
    if not facts.deployment.items:
        raise ConnectionError(f"QwenDeployment {namespace}/{name} cannot be read: {facts.deployment.problem}")
    return bundle.text(facts), 0


def _request(arguments: argparse.Namespace, namespace: str, namespaces: tuple[str, ...]) -> collect.Request:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    defaults = chart_settings(None)
    return collect.Request(now, namespace, arguments.release, namespaces, defaults, arguments.dry_run_pods)


def _text(findings: Sequence[Finding]) -> str:
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    signs = _SIGNS if encoding == "utf8" else _PLAIN_SIGNS
    width = max(len(one.name) for one in findings)
    lines = [f"{signs[one.mark]} {one.name:{width}}  {clean(one.message, _LONGEST)}" for one in findings]
    return "\n".join([*lines, "", _summary(findings), ""])


def _summary(findings: Sequence[Finding]) -> str:
    count = {mark: sum(one.mark is mark for one in findings) for mark in Mark}
    return (
        f"{count[Mark.OK]} good, {count[Mark.WARNING]} to look at, {count[Mark.BAD]} wrong, "
        f"{count[Mark.UNKNOWN]} not checked"
    )


def _json(findings: Sequence[Finding]) -> str:
    rows = [{"mark": str(one.mark), "check": one.name, "message": clean(one.message, _LONGEST)} for one in findings]
    return json.dumps({"findings": rows}, indent=2) + "\n"
