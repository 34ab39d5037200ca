"""`qwen-operator gateway-router`."""

import argparse
import os

from qwen_operator.gateway import router


def main(_arguments: argparse.Namespace) -> int:
    """Start the router; returns only if it cannot be started, or when it ended."""
    return router.main(os.environ)
