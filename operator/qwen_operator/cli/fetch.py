"""`qwen-operator fetch`: what the container `fetch` of an engine pod runs."""

from __future__ import annotations

import argparse
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_operator.checkpoints.hubs import ADDRESSES, TOKEN_VARIABLE, Hub

if TYPE_CHECKING:
    from qwen_operator.fetch.wire import Remote


def hub_options(parser: argparse.ArgumentParser) -> None:
    """Which repository of which hub. The token of a private one is in the environment."""
    parser.add_argument("--hub", choices=[str(hub) for hub in Hub], required=True)
    parser.add_argument("--hub-url", default="", metavar="URL", help="address of a mirror")
    parser.add_argument("--repository", required=True, metavar="ORGANISATION/NAME")


def remote_of(arguments: argparse.Namespace, revision: str) -> Remote:
    """The repository that the options name."""
    from qwen_operator.fetch.wire import Remote  # noqa: PLC0415 - the command line alone needs none of it

    hub = Hub(arguments.hub)
    base, token = (arguments.hub_url or ADDRESSES[hub]).rstrip("/"), os.environ.get(TOKEN_VARIABLE, "").strip()
    return Remote(hub, base, arguments.repository, revision, token)


def options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    hub_options(parser)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--file", default="", metavar="PATH", help="only this file, a GGUF file")
    parser.add_argument("--cache", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--size-gib", type=int, required=True, metavar="GIB", help="most that the cache may have")
    parser.add_argument(
        "--kept-free-percent", type=int, default=0, metavar="N", help="so much of the disk stays free; default: 0"
    )
    parser.add_argument(
        "--compile-folder", default="", metavar="PATH", help="make this folder of the cache, for what engines compile"
    )
    parser.add_argument("--port", type=int, default=8000, help="port of the page with the progress; default: 8000")


def main(arguments: argparse.Namespace) -> int:
    """Fetch the model into the cache, unless it is there."""
    from qwen_operator.fetch.program import Fetch, Place, main  # noqa: PLC0415 - the command line alone needs none of it

    limit, kept_free = arguments.size_gib << 30, arguments.kept_free_percent
    place = Place(arguments.cache, limit, socket.gethostname(), arguments.port, kept_free, arguments.compile_folder)
    return main(Fetch(replace(remote_of(arguments, arguments.commit), file=arguments.file), place))
