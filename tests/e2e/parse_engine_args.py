"""Puts argument lists through the argument parser of the installed SGLang; runs inside the engine image, on its Python.

    python3 parse_engine_args.py LISTS.json

LISTS.json is a list of argument lists. Prints one line of JSON: how many there were, the version, and for each refused
list its arguments and the parser's words. Nothing is loaded, and no GPU is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import sys
from pathlib import Path

from sglang.srt.server_args import ServerArgs, prepare_server_args

MODEL = ["--model-path=/models/none", "--served-model-name=none"]


def refusal(parser: argparse.ArgumentParser, args: list[str]) -> str | None:
    """What the parser says against a list, or None.

    SGLang's own way in takes unambiguous beginnings of names too; the operator's have to be whole names.
    """
    words = io.StringIO()
    try:
        with contextlib.redirect_stderr(words):
            parser.parse_args([*MODEL, *args])
            prepare_server_args([*MODEL, *args])
    except SystemExit:
        return words.getvalue().strip().splitlines()[-1]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(prog="sglang serve", allow_abbrev=False)
    ServerArgs.add_cli_args(parser)
    lists = json.loads(Path(sys.argv[1]).read_text())
    refused = [{"args": args, "why": why} for args in lists if (why := refusal(parser, args)) is not None]
    print(json.dumps({"sglang": importlib.metadata.version("sglang"), "lists": len(lists), "refused": refused}))


if __name__ == "__main__":
    main()
