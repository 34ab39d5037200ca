"""`qwen-operator cache-files`: what the pods of `qwen-operator cache` run. They mount the cache."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path


def options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--cache", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--remove", action="append", default=[], metavar="KEY", help="remove this model; repeatable")
    parser.add_argument("--pods", metavar="NAMES", help="the pods that exist, separated by commas; default: unknown")


def main(arguments: argparse.Namespace) -> int:
    """Print one line of JSON: what the cache has, or what became of the models to remove."""
    from qwen_operator.fetch.contents import Contents  # noqa: PLC0415 - the command line alone needs none of it
    from qwen_operator.fetch.faults import FetchError, told  # noqa: PLC0415
    from qwen_operator.fetch.store import Store  # noqa: PLC0415

    store = Store(arguments.cache, 0)
    pods = None if arguments.pods is None else frozenset(arguments.pods.split(","))
    contents = Contents(store, pods)
    try:
        items = contents.remove(arguments.remove) if arguments.remove else contents.items()
        free = store.free() if arguments.cache.is_dir() else 0
    except (FetchError, OSError) as trouble:
        print(json.dumps({"version": 1, "error": str(told(trouble))}), flush=True)
        return 1
    page = {"version": 1, "now": int(time.time()), "freeBytes": free, "models": [item.to_json() for item in items]}
    sys.stdout.write(json.dumps(page) + "\n")
    return 0
