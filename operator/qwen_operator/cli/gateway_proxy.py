"""`qwen-operator gateway-proxy`."""

import argparse
import os

from qwen_operator.gateway import proxy


def main(_arguments: argparse.Namespace) -> int:
    """Run the proxy. Returns when nginx ends, or if it cannot start."""
    return proxy.main(os.environ)
