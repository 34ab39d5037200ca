"""`qwen-operator fetch`: what the container `fetch` of an engine pod runs."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_operator.checkpoints.hubs import ADDRESSES, TOKEN_VARIABLE, Hub

if TYPE_CHECKING:
    from qwen_operator.fetch.bucket import Bucket
    from qwen_operator.fetch.wire import Remote


def hub_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Which repository of which hub. The token of a private one is in the environment."""
    parser.add_argument("--hub", choices=[str(hub) for hub in Hub], required=required, default=Hub.HUGGING_FACE)
    parser.add_argument("--hub-url", default="", metavar="URL", help="address of a mirror")
    parser.add_argument("--repository", required=required, default="", metavar="ORGANISATION/NAME")


def file_option(parser: argparse.ArgumentParser) -> None:
    """The only file of the repository or bucket."""
    parser.add_argument("--file", default="", metavar="PATH", help="only this file, a GGUF file, with all its parts")


def remote_of(arguments: argparse.Namespace, revision: str) -> Remote:
    """The repository that the options name."""
    from qwen_operator.fetch.wire import Remote  # noqa: PLC0415 - the command line alone needs none of it

    hub = Hub(arguments.hub)
    base, token = (arguments.hub_url or ADDRESSES[hub]).rstrip("/"), os.environ.get(TOKEN_VARIABLE, "").strip()
    return Remote(hub, base, arguments.repository, revision, token, arguments.file)


def s3_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Which folder of which bucket. The credentials are in the environment, as AWS names them."""
    parser.add_argument("--s3", required=required, default="", metavar="s3://BUCKET/PREFIX")
    parser.add_argument("--endpoint", default="", metavar="URL", help="address of the S3 server; default: AWS")


def bucket_of(arguments: argparse.Namespace, commit: str) -> Bucket:
    """The folder that the options name."""
    from qwen_operator.fetch.bucket import Bucket  # noqa: PLC0415 - the command line alone needs none of it

    return Bucket.of_uri(arguments.s3, arguments.endpoint, commit, arguments.file)


def options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    hub_options(parser, required=False)
    s3_options(parser, required=False)
    parser.add_argument("--commit", required=True)
    file_option(parser)
    parser.add_argument("--cache", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--size-gib", type=int, required=True, metavar="GIB", help="most that the cache may have")
    parser.add_argument(
        "--kept-free-percent", type=int, default=0, metavar="N", help="so much of the disk stays free; default: 0"
    )
    parser.add_argument("--of-pod", action="store_true", help="the folder ends with the pod: it is no cache")
    parser.add_argument(
        "--compile-folder", default="", metavar="PATH", help="make this folder of the cache, for what engines compile"
    )
    parser.add_argument("--port", type=int, default=8000, help="port of the page with the progress; default: 8000")


def main(arguments: argparse.Namespace) -> int:
    """Fetch the model into the cache, unless it is there."""
    if bool(arguments.s3) == bool(arguments.repository):
        print("fetch: give either --hub and --repository, or --s3", file=sys.stderr)
        return 2
    from qwen_operator.fetch.program import Fetch, Place, main  # noqa: PLC0415 - the command line alone needs none of it

    limit, kept_free = arguments.size_gib << 30, arguments.kept_free_percent
    place = Place(
        arguments.cache,
        limit,
        socket.gethostname(),
        arguments.port,
        kept_free,
        compile_folder=arguments.compile_folder,
        of_pod=arguments.of_pod,
    )
    if arguments.s3:
        return main(Fetch(bucket_of(arguments, arguments.commit), place))
    return main(Fetch(remote_of(arguments, arguments.commit), place))
