"""`qwen-operator crds`."""

import argparse
import sys
from pathlib import Path

from qwen_operator.api.crd import FILE_NAME, render


def options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="write one file for each definition to this folder"
    )


def main(arguments: argparse.Namespace) -> int:
    """Print the definitions, or write them to the folder `--output`."""
    if arguments.output is None:
        sys.stdout.write(render())
        return 0
    folder: Path = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).write_text(render(), encoding="utf-8")
    return 0
