"""`qwen-operator cache ls|rm`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from qwen_operator.caches import places, table
from qwen_operator.caches.pods import Access, Place
from qwen_operator.caches.session import PlaceError, Session
from qwen_operator.caches.table import Row
from qwen_operator.cli.cluster import quiet
from qwen_operator.doctor.reader import Reader
from qwen_operator.kube.client import HttpKubeApi, connect_as
from qwen_operator.planning.types import CacheType, ModelCache
from qwen_operator.untrusted import clean

_LONGEST = 1000


def options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = commands.add_parser("ls", help="show the models in the cache of a namespace")
    removal = commands.add_parser("rm", help="remove models that nobody uses")
    for one in (listing, removal):
        _common(one)
    listing.add_argument("-o", "--output", choices=("text", "json"), default="text")
    removal.add_argument("models", nargs="*", metavar="MODEL[@COMMIT]", help="for example Qwen/Qwen3-8B")
    removal.add_argument("--all", action="store_true", help="all models that nobody uses")
    removal.add_argument("--dry-run", action="store_true", help="show what would go, and remove nothing")
    removal.add_argument("--yes", action="store_true", help="do not ask")


def _common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-n", "--namespace", default="default", help="namespace of the QwenDeployments (default: default)")
    add("--node", action="append", default=[], metavar="NODE", help="only this node, for a HostPath; repeatable")
    add("--release", default="qwen", help="name of the Helm release (default: qwen)")
    add("--release-namespace", default="qwen-system", help="the release's namespace (default: qwen-system)")
    add("--image", default="", help="the operator's image, if you may not read the release; with --claim or --path")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--claim", default="", metavar="NAME", help="the chart's cache.claimName")
    where.add_argument("--path", default="", metavar="FOLDER", help="the chart's cache.path")
    add("--timeout", type=float, default=120.0, metavar="SECONDS", help="for each pod (default: 120)")
    add("--kubeconfig", default="", metavar="FILE", help="the kubeconfig (default: as for kubectl)")
    add("--context", default="", help="the context of the kubeconfig (default: its current one)")


def main(arguments: argparse.Namespace) -> int:
    """List or clean a cache. Returns the exit code.

    0: all was done; 1: a place could not be read, or a model stays; 2: nothing could be done.
    """
    if arguments.action == "rm" and bool(arguments.models) == arguments.all:
        return _failed("name the models to remove, or give --all")
    try:
        with quiet():
            return asyncio.run(_run(arguments))
    except (PlaceError, ConnectionError, OSError) as error:
        return _failed(clean(error, _LONGEST))
    except KeyboardInterrupt:
        return _failed("interrupted")


async def _run(arguments: argparse.Namespace) -> int:
    api = await connect_as(arguments.kubeconfig, arguments.context, user_agent="qwen-operator-cache")
    try:
        command = await _command(api, arguments)
        return await (command.ls if arguments.action == "ls" else command.rm)(arguments)
    finally:
        await api.aclose()


async def _command(api: HttpKubeApi, arguments: argparse.Namespace) -> _Command:
    reader = Reader(api)
    given = _given(arguments)
    access = given or await places.read_access(reader, arguments.release_namespace, arguments.release)
    if arguments.node and access.cache.type is not CacheType.HOST_PATH:
        raise PlaceError("--node is for a cache of the type HostPath, and this one is a claim")
    pods = await places.read_pods(reader, arguments.namespace)
    where = await places.places_of(reader, access, arguments.namespace, pods, arguments.node)
    return _Command(Session(api, access, arguments.timeout), where, reader)


def _given(arguments: argparse.Namespace) -> Access | None:
    """The cache and image of the options; None if the release has to say it."""
    place = arguments.claim or arguments.path
    if not arguments.image and not place:
        return None
    if not arguments.image or not place:
        raise PlaceError("--image goes together with --claim or --path: give both, or none of them")
    kind = CacheType.CLAIM if arguments.claim else CacheType.HOST_PATH
    return Access(ModelCache(kind, place, 0), arguments.image)


@dataclass(frozen=True, slots=True)
class _Command:
    """The work, after everything is known that it needs."""

    session: Session
    places: Sequence[Place]
    reader: Reader

    async def ls(self, arguments: argparse.Namespace) -> int:
        rows, free, code = await self._listed()
        if arguments.output == "json":
            document = {"models": [table.as_json(row) for row in rows], "freeBytes": free}
            sys.stdout.write(json.dumps(document, indent=2) + "\n")
        elif rows:
            limit = self.session.access.cache.size_gib
            room = "\n".join(table.room(place, rows, count, limit) for place, count in free.items())
            sys.stdout.write(f"{table.table(rows)}\n{room}\n")
        elif not code:
            sys.stdout.write("the cache has no model\n")
        return code

    async def rm(self, arguments: argparse.Namespace) -> int:
        listed, _, code = await self._listed()
        rows, unknown = (listed, []) if arguments.all else table.chosen(listed, arguments.models)
        for name in unknown:
            _complain(f"no cache has {clean(name, 200)}: qwen-operator cache ls shows what there is")
        going = [row for row in rows if row.free]
        if not arguments.all:
            for row in rows:
                if not row.free:
                    _complain(table.refused(row))
            code = max(code, int(bool(unknown) or len(going) < len(rows)))
        if not going:
            sys.stdout.write("nothing to remove\n")
            return code
        sys.stdout.write(table.table(going))
        if arguments.dry_run:
            return code
        if not arguments.yes and not _confirmed(sum(row.bytes for row in going), len(going)):
            return _failed("nothing was removed")
        return max(code, await self._remove(going))

    async def _listed(self) -> tuple[list[Row], dict[str, int], int]:
        """What all places have, the free bytes of each, and 1 if one could not be read."""
        words = await self._pods()
        pages = await asyncio.gather(*(self.session.run(place, words) for place in self.places))
        rows: list[Row] = []
        free: dict[str, int] = {}
        for place, page in zip(self.places, pages, strict=True):
            if isinstance(page, PlaceError):
                _complain(f"{place.name}: {page}")
            else:
                rows += page.rows
                free[place.name] = page.free_bytes
        return rows, free, int(len(free) < len(self.places))

    async def _remove(self, going: Sequence[Row]) -> int:
        code = 0
        for place in self.places:
            keys = [row.key for row in going if row.place == place.name]
            if not keys:
                continue
            words = [*(f"--remove={key}" for key in keys), *await self._pods()]
            page = await self.session.run(place, words)
            if isinstance(page, PlaceError):
                _complain(f"{place.name}: {page}")
                code = 1
                continue
            for row in page.rows:
                if row.removed:
                    sys.stdout.write(f"removed {table.model_of(row)} at {row.commit[:12]} from {place.name}\n")
                else:
                    _complain(table.refused(row))
                    code = 1
        return code

    async def _pods(self) -> list[str]:
        """The option with the pods that exist now. Without it every lease of the last hour protects its model."""
        pods = await places.read_pods(self.reader, self.places[0].namespace)
        return [] if pods.problem else [f"--pods={','.join(places.fetching(pods))}"]


def _confirmed(count: int, models: int) -> bool:
    if not sys.stdin.isatty():
        _complain("there is no terminal to ask on: give --yes")
        return False
    answer = input(f"Remove {models} models with {table.size(count)}? Type yes: ")
    return answer.strip().lower() == "yes"


def _complain(message: str) -> None:
    sys.stderr.write(f"qwen-operator cache: {message}\n")


def _failed(message: str) -> int:
    _complain(message)
    return 2
