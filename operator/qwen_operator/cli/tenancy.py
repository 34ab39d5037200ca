"""`qwen-operator tenancy`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from qwen_operator.api.spec import InvalidSpec, parse
from qwen_operator.cli import files
from qwen_operator.cli.files import InputError
from qwen_operator.cli.settings import chart_settings
from qwen_operator.tenancy.judge import refused
from qwen_operator.tenancy.lists import Tenancy

KIND = "QwenDeployment"


def options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "-f",
        "--file",
        action="append",
        default=[],
        metavar="FILE",
        help="manifests; can be repeated. Default: the cluster",
    )
    parser.add_argument("-n", "--namespace", help="only this namespace of the cluster; the default is all")
    parser.add_argument(
        "--config", metavar="FILE", help="values of the chart: tenancy, engine. Default: the chart's own"
    )


def main(arguments: argparse.Namespace) -> int:
    """Print each QwenDeployment that the lists do not allow, with the reasons, and the values that exempt them all.

    Exit code 0: the lists allow all. 3: there are such objects. 2: the input cannot be used.
    """
    try:
        tenancy = chart_settings(arguments.config).tenancy
        objects = _objects(arguments)
    except InputError as error:
        sys.stderr.write(f"qwen-operator tenancy: {error}\n")
        return 2
    reasons = {key: texts for key, texts in _judged(objects, tenancy) if texts}
    for key, texts in reasons.items():
        sys.stdout.write("".join(f"{key}: {text}\n" for text in texts))
    sys.stdout.write(f"{len(reasons)} of {len(objects)} QwenDeployments ask for more than tenancy allows\n")
    if not reasons:
        return 0
    sys.stdout.write("These values of the chart let them ask for everything:\n\ntenancy:\n  exempt:\n")
    sys.stdout.write("".join(f"    - {key}\n" for key in reasons))
    return 3


def _judged(objects: Iterable[Mapping[str, Any]], tenancy: Tenancy) -> Iterable[tuple[str, list[str]]]:
    """(NAMESPACE/NAME, reasons) of each object."""
    for item in objects:
        metadata = item.get("metadata") or {}
        namespace, name = str(metadata.get("namespace") or "default"), str(metadata.get("name"))
        key = f"{namespace}/{name}"
        try:
            parse(item)
        except InvalidSpec as error:
            yield key, [f"the spec is not valid: {error}"]
            continue
        judged = tenancy.judges(namespace, name)
        yield key, [one.message for one in refused(item["spec"], tenancy, namespace)] if judged else []


def _objects(arguments: argparse.Namespace) -> list[Mapping[str, Any]]:
    if not arguments.file:
        return _of_the_cluster(arguments.namespace)
    documents = [one for path in arguments.file for one in files.documents(path)]
    items = [item for one in documents for item in _items(one)]
    deployments = [item for item in items if isinstance(item, Mapping) and item.get("kind") == KIND]
    if not deployments:
        raise InputError(f"{', '.join(arguments.file)}: has no object of kind {KIND}")
    return deployments


def _items(document: Any) -> list[Any]:
    inner = document.get("items") if isinstance(document, Mapping) else document
    return inner if isinstance(inner, list) else [document]


def _of_the_cluster(namespace: str | None) -> list[Mapping[str, Any]]:
    from qwen_operator.cli.cluster import listed  # noqa: PLC0415 - a second of imports that only this case needs
    from qwen_operator.kube import QWENDEPLOYMENTS  # noqa: PLC0415

    try:
        return listed(QWENDEPLOYMENTS, namespace)
    except ConnectionError as error:
        raise InputError(f"the cluster cannot be read ({error}): give manifests with -f") from error
