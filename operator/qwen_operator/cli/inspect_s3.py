"""`qwen-operator inspect-s3`: what the inspection pod of a folder in a bucket runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from qwen_operator.cli.fetch import bucket_of, file_option, s3_options
from qwen_operator.cli.inspect_hub import inspect


def options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    s3_options(parser, required=True)
    file_option(parser)
    parser.add_argument("--revision", default="", help="the digest that the files must have; default: any")
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: /dev/termination-log if it exists")


def main(arguments: argparse.Namespace) -> int:
    """Report the facts of the files as JSON, in the form of `qwen-runtime inspect`."""
    return inspect(bucket_of(arguments, arguments.revision), arguments.output)
