"""`qwen-operator gateway-router`."""

import argparse
import os

from qwen_operator.gateway import router


def main(_arguments: argparse.Namespace) -> int:
    """Run the router. Returns when the router ends, or if it cannot start."""
    return router.main(os.environ)
