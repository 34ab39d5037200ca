"""`qwen-operator`: every program of the one image.

Each command is a module with a function `main(arguments) -> exit code`, imported only when it is chosen: the gateway's
programs must not pay for the operator's imports.
"""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from qwen_operator.cli import logs

COMMANDS = {
    "run": "run the operator; QWEN_CONFIG names its configuration file",
    "gateway-agent": "tell the gateway's router which engines exist",
    "gateway-router": "start the gateway's router",
    "crds": "print the custom resource definitions, or write them to a folder",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 well, 1 failed, 2 used wrongly."""
    parser = argparse.ArgumentParser(prog="qwen-operator", description="Serve Qwen models on Kubernetes with SGLang.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    added = {name: commands.add_parser(name, help=text, description=text) for name, text in COMMANDS.items()}
    added["crds"].add_argument("--output", type=Path, metavar="FOLDER", help="write one file per definition here")
    arguments = parser.parse_args(argv)
    logs.configure()
    module = importlib.import_module(f"qwen_operator.cli.{arguments.command.replace('-', '_')}")
    code: int = module.main(arguments)
    return code
