"""`qwen-operator inspect-adapters`: what an inspection pod with adapters of hubs and buckets runs."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from qwen_operator.cli.fetch import adapter_of, own_environment


def options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--path", type=Path, metavar="DIR", help="the folder of the model, if it is read too")
    parser.add_argument(
        "--adapter", metavar="NAME=DIR", action="append", default=[], help="an adapter in a folder, several times"
    )
    parser.add_argument(
        "--remote",
        metavar="'NAME OPTIONS'",
        action="append",
        default=[],
        help="an adapter elsewhere: its name, --commit, which may be a branch or a tag, and its place as for fetch",
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: /dev/termination-log if it exists")


def main(arguments: argparse.Namespace) -> int:
    """Report the facts of the adapters, and of a model, as JSON in the form of `qwen-runtime inspect`."""
    from qwen_runtime.report import bounded, deliver  # noqa: PLC0415 - the command line alone needs none of it

    with tempfile.TemporaryDirectory() as folder:
        report, complete = _report(arguments, Path(folder))
    data = bounded(report)
    sys.stdout.buffer.write(data + b"\n")
    sys.stdout.flush()
    return 0 if deliver(data, arguments.output) and complete else 1


def _report(arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], bool]:
    """The report, and whether the facts are complete. `adapterCommits` are those of the adapters by name."""
    from qwen_operator.fetch.faults import FetchError  # noqa: PLC0415
    from qwen_operator.fetch.heads import Heads  # noqa: PLC0415
    from qwen_operator.fetch.wire import Client, certificates  # noqa: PLC0415
    from qwen_runtime.inspect_checkpoint import examine  # noqa: PLC0415

    folders = {name: Path(path) for name, _, path in (text.partition("=") for text in arguments.adapter)}
    commits, shown, context = dict.fromkeys(folders, ""), dict[str, str](), certificates()
    for number, text in enumerate(arguments.remote):
        with own_environment(number):
            name, _, place = text.partition(" ")
            remote, folders[name] = adapter_of(place), folder / name
            folders[name].mkdir()
            shown[f"{folders[name]}"] = str(remote)
            try:
                commits[name] = Heads(remote, lambda one: Client(one, context)).fill(folders[name])
            except FetchError as error:
                message = of_adapter(name, f"{error}.")
                return {"version": 1, "error": {"reason": str(error.reason), "message": message}}, False
    named = sorted(folders.items())
    report, complete = examine(arguments.path, named)
    if complete:
        return report | {"adapterCommits": [commits[name] for name, _ in named]}, True
    for path, written in shown.items():
        report["error"]["message"] = report["error"]["message"].replace(path, written)
    return report, False


def of_adapter(name: str, message: str) -> str:
    """A message about the source of a model as one about that of an adapter."""
    return f"spec.adapters[{name}]: {message.replace('spec.source.', f'spec.adapters[{name}].source.')}"
