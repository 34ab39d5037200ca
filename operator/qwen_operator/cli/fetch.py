"""`qwen-operator fetch`: what the container `fetch` of an engine pod runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_operator.checkpoints.hubs import ADDRESSES, TOKEN_VARIABLE, Hub
from qwen_operator.manifests.cached_adapters import adapter_path
from qwen_operator.manifests.model_cache import ADAPTER_VARIABLES, ADAPTERS
from qwen_runtime.adapter_list import WANTED_FILE, read_list
from qwen_runtime.checkpoints.adapter import ADAPTER_CONFIG

if TYPE_CHECKING:
    from qwen_operator.fetch.bucket import Bucket
    from qwen_operator.fetch.wire import Remote, RemoteModel

# Of the model. An adapter has its own, or none.
_SECRET = (TOKEN_VARIABLE, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


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


def adapter_of(text: str) -> RemoteModel:
    """The LoRA adapter that a text of options names. Its credentials are in the environment."""
    parser = argparse.ArgumentParser(prog="--adapter", allow_abbrev=False)
    hub_options(parser, required=False)
    s3_options(parser, required=False)
    parser.add_argument("--commit", default="")
    parser.add_argument("--folder", type=_folder, help="its folder in the cache")
    file_option(parser)
    arguments = parser.parse_args([*shlex.split(text), f"--file={ADAPTER_CONFIG}"])
    place = arguments.folder or ""
    if arguments.s3:
        return replace(bucket_of(arguments, arguments.commit), place=place)
    return replace(remote_of(arguments, arguments.commit), place=place)


def _folder(text: str) -> str:
    """The folder of an adapter, three levels deep as all others. Raises ArgumentTypeError."""
    first, *rest = text.split("/")
    if first != ADAPTERS or len(rest) != 2 or any(not part.strip(".") for part in rest):
        raise argparse.ArgumentTypeError(f"{text} is not {ADAPTERS}/NAME/COMMIT")
    return text


def unwanted(remote: RemoteModel, listed: Path | None) -> bool:
    """Whether the list of the adapters that an engine should have lacks this one. Without a list, all are wanted."""
    if listed is None or not remote.folder.startswith(f"{ADAPTERS}/"):
        return False
    try:
        folders = read_list((listed / WANTED_FILE).read_text()).values()
    except (OSError, ValueError, RecursionError):
        return False
    return adapter_path(remote.folder) not in folders


@contextlib.contextmanager
def own_environment(number: int) -> Iterator[None]:
    """Have the credentials of the adapter of this number in the environment, in place of those of the model."""
    prefix, before = ADAPTER_VARIABLES.format(number), dict(os.environ)
    own = {name.removeprefix(prefix): value for name, value in before.items() if name.startswith(prefix)}
    for name in _SECRET:
        os.environ.pop(name, None)
    os.environ.update(own)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    hub_options(parser, required=False)
    s3_options(parser, required=False)
    parser.add_argument("--commit", default="", help="needed with a repository or a bucket")
    parser.add_argument(
        "--adapter",
        metavar="'OPTIONS'",
        action="append",
        default=[],
        help="a LoRA adapter: --commit and its place, as for the model, in one word; several times",
    )
    parser.add_argument(
        "--adapters",
        type=Path,
        metavar="FOLDER",
        help="fetch only adapters that a file of this folder lists; there may be none",
    )
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
    model = bool(arguments.s3) + bool(arguments.repository)
    if model > 1 or not (model or arguments.adapter or arguments.adapters):
        print("fetch: give either --hub and --repository, or --s3, or only --adapter", file=sys.stderr)
        return 2
    if model and not arguments.commit:
        print("fetch: --commit is missing", file=sys.stderr)
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
    adapters = []
    for number, text in enumerate(arguments.adapter):
        with own_environment(number):
            remote = adapter_of(text)
            if not unwanted(remote, arguments.adapters):
                adapters.append((str(remote), Fetch(remote, place)))
    shared = place if arguments.adapters else None
    if not model:
        return main(None, adapters=adapters, shared=shared)
    chosen = bucket_of(arguments, arguments.commit) if arguments.s3 else remote_of(arguments, arguments.commit)
    return main(Fetch(chosen, place), adapters=adapters, shared=shared)
