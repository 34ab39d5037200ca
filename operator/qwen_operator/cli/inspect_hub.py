"""`qwen-operator inspect-hub`: what the inspection pod of a private repository runs."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from qwen_operator.checkpoints.hubs import ADDRESSES, Hub
from qwen_operator.cli.fetch import TOKEN


def options(parser: argparse.ArgumentParser) -> None:
    """The options of the command. The token of a private repository is in the environment."""
    parser.add_argument("--hub", choices=[str(hub) for hub in Hub], required=True)
    parser.add_argument("--hub-url", default="", metavar="URL", help="address of a mirror")
    parser.add_argument("--repository", required=True, metavar="ORGANISATION/NAME")
    parser.add_argument("--revision", required=True, help="branch, tag or commit")
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: /dev/termination-log if it exists")


def main(arguments: argparse.Namespace) -> int:
    """Report the facts of the repository as JSON, in the form of `qwen-runtime inspect`."""
    from qwen_operator.fetch.heads import Heads  # noqa: PLC0415 - the command line alone needs none of it
    from qwen_operator.fetch.wire import Client, Remote, certificates  # noqa: PLC0415
    from qwen_runtime.report import bounded, deliver  # noqa: PLC0415

    hub = Hub(arguments.hub)
    base, token = (arguments.hub_url or ADDRESSES[hub]).rstrip("/"), os.environ.get(TOKEN, "").strip()
    remote, context = Remote(hub, base, arguments.repository, arguments.revision, token), certificates()
    with tempfile.TemporaryDirectory() as folder:
        report, complete = Heads(remote, lambda one: Client(one, context)).report(Path(folder))
    data = bounded(report)
    sys.stdout.buffer.write(data + b"\n")
    sys.stdout.flush()
    return 0 if deliver(data, arguments.output) and complete else 1
