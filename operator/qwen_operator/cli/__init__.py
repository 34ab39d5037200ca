"""`qwen-operator`: all programs of the operator's image.

Each command is a module with a function `main(arguments) -> exit code`, and `options(parser)` if it has options. Only
the module of the chosen command is imported, because the gateway's programs and a plan on a laptop must not wait for
the operator's imports.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from qwen_operator.cli import logs

COMMANDS = {
    "run": "run the operator; QWEN_CONFIG names its configuration file",
    "gateway-agent": "tell the gateway's router which engines exist",
    "gateway-router": "start the gateway's router",
    "gateway-proxy": "start the proxy that clients reach, in front of the router",
    "fetch": "download a model into a cache; the first container of an engine pod runs it",
    "cache": "list the models in the cache of a namespace, or remove those that nobody uses",
    "cache-files": "list or clean the cache in a folder; the pods of the command cache run it",
    "inspect-hub": "report the facts of a repository on a hub; the inspection pod of a private one runs it",
    "inspect-s3": "report the facts of a folder in a bucket; its inspection pod runs it",
    "inspect-adapters": "report the facts of LoRA adapters on hubs and in buckets; an inspection pod runs it",
    "crds": "print the custom resource definitions, or write them to a folder",
    "plan": "plan GPUs and options for a model, without a cluster; exit code 3 if it does not fit",
    "render": "print the objects that the operator would create for a manifest",
    "doctor": "check a cluster, or collect all about one QwenDeployment for support; exit code 1 if a check failed",
    "tenancy": "list the QwenDeployments that ask for more than the chart's tenancy allows; exit code 3 if any",
    "replay": "show what a scaling policy decides, and why, over what the operator recorded",
    "models": "list the published models that the operator knows without reading a file",
}
PRINTING = ("crds", "plan", "render", "tenancy", "models", "doctor", "replay", "cache")
# The exit code of a program that SIGPIPE ends.
_NO_READER = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 success, 1 failure, 2 wrong usage, 3 no plan."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="qwen-operator", description="Serve Qwen models on Kubernetes with SGLang.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    added = {name: commands.add_parser(name, help=text, description=text) for name, text in COMMANDS.items()}
    chosen = next((word for word in words if not word.startswith("-")), "")
    module = importlib.import_module(f"qwen_operator.cli.{chosen.replace('-', '_')}") if chosen in COMMANDS else None
    if module is not None and hasattr(module, "options"):
        module.options(added[chosen])
    arguments = parser.parse_args(words)
    assert module is not None, "the parser ends the program if there is no command"
    logs.configure()
    try:
        code: int = module.main(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        if chosen not in PRINTING:
            raise
        # The reader of the output, such as head, has closed it. Without this, Python prints another error at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NO_READER
    return code
