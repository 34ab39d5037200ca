"""The test bed's command line: `python -m tests.testbed up|down|status|env|snapshot`."""

import argparse
import json
import shlex
import sys

from tests.testbed.bed import bring_up
from tests.testbed.cache import StepFailed, say
from tests.testbed.cluster import Cluster
from tests.testbed.layout import MOST_NODES
from tests.testbed.simulated import Pool
from tests.testbed.teardown import snapshot


def main() -> int:
    """Runs one command. If it fails, returns 1 and prints one plain text to standard error."""
    arguments = _parser().parse_args()
    try:
        _run(arguments)
    except StepFailed as failure:
        say(str(failure))
        return 1
    except KeyboardInterrupt:
        say("interrupted; the same command continues from here, `down` removes everything")
        return 130
    return 0


def _run(arguments: argparse.Namespace) -> None:
    match arguments.command:
        case "up":
            _print_environment(_up(arguments))
        case "down":
            Cluster().down()
        case "status":
            print(json.dumps(Cluster().status(), indent=2))
        case "env":
            _print_environment(Cluster())
        case "snapshot":
            print("\n".join(snapshot()))


def _up(arguments: argparse.Namespace) -> Cluster:
    if arguments.without_node:
        cluster = Cluster()
        cluster.up(node=False, simulated=arguments.simulated)
        return cluster
    return bring_up(arguments.simulated, real_nodes=arguments.nodes)


def _print_environment(cluster: Cluster) -> None:
    words = {name: shlex.quote(value) for name, value in cluster.environment().items()}
    words["PATH"] = f"{shlex.quote(str(cluster.bin_dir))}:$PATH"
    print("export", *(f"{name}={word}" for name, word in words.items()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.testbed", description="A real cluster on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start the cluster, or its missing parts, and print its environment")
    real = up.add_mutually_exclusive_group()
    real.add_argument("--without-node", action="store_true", help="control plane and simulated nodes only, no images")
    real.add_argument(
        "--nodes",
        type=int,
        choices=range(1, MOST_NODES + 1),
        default=0,
        help="how many real nodes run then; each but the first claims one GPU, for replicas over several nodes",
    )
    up.add_argument(
        "--simulated",
        type=_pool,
        nargs="*",
        default=[],
        metavar="PRODUCT=GPUSxNODES",
        help="more simulated GPU nodes, as in NVIDIA-L4=8x2",
    )
    commands.add_parser("down", help="remove everything except the cache")
    commands.add_parser("status", help="print processes and nodes as JSON")
    commands.add_parser("env", help="print the shell line that points kubectl and helm at the cluster")
    commands.add_parser("snapshot", help="list the machine's processes, mounts, interfaces, tables, chains and cgroups")
    return parser


def _pool(text: str) -> Pool:
    try:
        return Pool.parse(text)
    except ValueError as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from wrong


if __name__ == "__main__":
    sys.exit(main())
