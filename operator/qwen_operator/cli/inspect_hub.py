"""`qwen-operator inspect-hub`: what the inspection pod of a private repository runs."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_operator.cli.fetch import file_option, hub_options, remote_of

if TYPE_CHECKING:
    from qwen_operator.fetch.wire import RemoteModel


def options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    hub_options(parser)
    file_option(parser)
    parser.add_argument("--revision", required=True, help="branch, tag or commit")
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: /dev/termination-log if it exists")


def main(arguments: argparse.Namespace) -> int:
    """Report the facts of the repository as JSON, in the form of `qwen-runtime inspect`."""
    return inspect(remote_of(arguments, arguments.revision), arguments.output)


def inspect(remote: RemoteModel, output: Path | None) -> int:
    """Report the facts of files that are elsewhere."""
    from qwen_operator.fetch.heads import Heads  # noqa: PLC0415 - the command line alone needs none of it
    from qwen_operator.fetch.wire import Client, certificates  # noqa: PLC0415
    from qwen_runtime.report import bounded, deliver  # noqa: PLC0415

    context = certificates()
    with tempfile.TemporaryDirectory() as folder:
        report, complete = Heads(remote, lambda one: Client(one, context)).report(Path(folder))
    data = bounded(report)
    sys.stdout.buffer.write(data + b"\n")
    sys.stdout.flush()
    return 0 if deliver(data, output) and complete else 1
