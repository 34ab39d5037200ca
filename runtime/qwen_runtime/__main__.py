"""Command line of the archive: install, inspect, launch, prestop."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import NoReturn

from qwen_runtime import __version__
from qwen_runtime.adapters import Loader
from qwen_runtime.compile_cache import driver_version, use
from qwen_runtime.engine_log import Patience
from qwen_runtime.group import Member
from qwen_runtime.guard import unknown_engine
from qwen_runtime.hold import NotHeld, hold
from qwen_runtime.inspect_checkpoint import examine
from qwen_runtime.install import NotInstalled, install
from qwen_runtime.launch import FORWARDED, Reports, launch
from qwen_runtime.log_lines import NoLogLines, installed
from qwen_runtime.preflight import interface_problem, lockable_bytes, memory_problem, present_interfaces
from qwen_runtime.progress import PORT
from qwen_runtime.report import bounded, complain, deliver


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qwen-runtime", description="The program inside engine and inspection pods.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    install_ = commands.add_parser("install", help="copy this archive into a folder")
    install_.add_argument("folder", metavar="DEST", type=Path)
    _inspect_options(commands.add_parser("inspect", help="report the facts of a checkpoint folder as JSON"))
    launch_ = commands.add_parser(
        "launch", help="run an engine as the child of an init process", usage="%(prog)s [options] -- CMD..."
    )
    _launch_options(launch_)
    _group_options(launch_)
    prestop = commands.add_parser("prestop", help="wait while the gateway removes this pod from its routes")
    prestop.add_argument("--seconds", type=_seconds, required=True)
    return parser


def _inspect_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--path", metavar="DIR", type=Path, help="needed without --adapter")
    parser.add_argument(
        "--adapter",
        metavar="NAME=DIR",
        type=_adapter,
        action="append",
        default=[],
        help="a LoRA adapter, several times",
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: /dev/termination-log if it exists")


def _launch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hold",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="lock this file of a cached model while it runs, several times",
    )
    parser.add_argument(
        "--compile-cache",
        metavar="FOLDER",
        type=Path,
        help="keep what the engine compiles here, by the driver's version",
    )
    parser.add_argument(
        "--adapters", metavar="FOLDER", type=Path, help="load and unload the adapters that a file of this folder lists"
    )
    parser.add_argument("--termination-log", metavar="FILE", type=Path, help="default: /dev/termination-log")
    parser.add_argument(
        "--crash-seconds", type=_seconds, default=90.0, help="seconds to end after a logged crash; default: 90"
    )
    parser.add_argument(
        "--port-seconds", type=_seconds, default=30.0, help="seconds to end if the port is in use; default: 30"
    )
    parser.add_argument(
        "--start-seconds",
        type=_seconds,
        default=15.0,
        help="seconds to end for an engine that is told to end before it serves; default: 15",
    )
    parser.add_argument(
        "--start-port", type=int, metavar="PORT", default=PORT, help=f"port of the page with the start; default: {PORT}"
    )


def _group_options(parser: argparse.ArgumentParser) -> None:
    """The options of `launch` for an engine over several pods."""
    parser.add_argument(
        "--stopped-seconds",
        type=_seconds,
        default=20.0,
        help="seconds that a process of an engine over several pods may be stopped (state T); default: 20",
    )
    parser.add_argument("--group-size", type=int, metavar="N", help="run the engine over N pods; default: one")
    parser.add_argument("--group-rank", type=int, metavar="R", help="the rank of this pod, from 0")
    parser.add_argument(
        "--group-seconds", type=_seconds, default=1200.0, help="seconds to wait for the other pods; default: 1200"
    )
    parser.add_argument("--group-leader", metavar="FILE", type=Path, help="a file with the address and uid of rank 0")
    parser.add_argument(
        "--group-locks-memory", action="store_true", help="refuse a node that lets it lock too little memory"
    )


def _adapter(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not name or not separator or not folder:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=DIR")
    return name, Path(folder)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds from 0 to 86400")
    return value


def _install(folder: Path) -> int:
    try:
        target = install(Path(sys.argv[0]), folder)
    except NotInstalled as error:
        complain(str(error))
        return 1
    print(f"installed {target}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    output: Path | None = options.output
    report, complete = examine(options.path, options.adapter)
    data = bounded(report)
    sys.stdout.buffer.write(data + b"\n")
    sys.stdout.flush()
    return 0 if deliver(data, output) and complete else 1


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _launch(options: argparse.Namespace, command: Sequence[str]) -> int:
    for number in FORWARDED:
        # There is no engine yet. Without a handler, process 1 of a container never learns of the signal: the engine
        # would start, and hold its GPUs until the end of the grace period.
        signal.signal(number, _leave)
    try:
        log_lines = installed()
    except NoLogLines as error:
        complain(str(error))
        return 1
    if problem := unknown_engine():
        complain(problem)
        return 1
    adapters = None if options.adapters is None else Loader(options.adapters)
    try:
        for locked in options.hold:
            hold(locked)
        if adapters is not None:
            adapters.hold()
    except NotHeld as error:
        complain(str(error))
        deliver(error.report(), options.termination_log)
        return 1
    if options.compile_cache is not None and (problem := use(options.compile_cache, driver_version(), os.getuid())):
        complain(problem)
    patience = Patience(options.crash_seconds, options.port_seconds, options.stopped_seconds, options.start_seconds)
    reports = Reports(options.termination_log, options.start_port, adapters)
    return launch(command, log_lines, patience, reports, _member(options))


def _member(options: argparse.Namespace) -> Member | None:
    """The place in a group of pods, from the options and the environment of the pod; None without a group."""
    if options.group_size is None:
        return None
    return Member(
        size=options.group_size,
        rank=options.group_rank,
        name=os.environ.get("QWEN_POD_NAME", ""),
        address=os.environ.get("QWEN_POD_IP", ""),
        uid=os.environ.get("QWEN_POD_UID", ""),
        leader_file=options.group_leader or Path("/nonexistent"),
        engine=_engine_version(),
        problem=_problem(options),
        seconds=options.group_seconds,
    )


def _problem(options: argparse.Namespace) -> str:
    """Why the engine cannot reach the others as it is told to, "" if nothing is known against it."""
    problem = interface_problem(os.environ, present_interfaces())
    return problem or (memory_problem(lockable_bytes()) if options.group_locks_memory else "")


def _engine_version() -> str:
    try:
        return metadata.version("sglang")
    except metadata.PackageNotFoundError:
        return ""


def _check_group(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    rank = options.group_rank
    if options.group_size < 2 or rank is None or not 0 <= rank < options.group_size:
        parser.error("launch needs --group-size of at least 2, and --group-rank from 0 below it")
    if rank and options.group_leader is None:
        parser.error("launch needs --group-leader for every rank but 0")


def main(argv: Sequence[str] | None = None, sleep: Callable[[float], None] = time.sleep) -> int:
    """Run one command and return its exit code. A wrong command line raises SystemExit(2), like argparse."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command: list[str] = []
    if "--" in arguments:
        split = arguments.index("--")
        arguments, command = arguments[:split], arguments[split + 1 :]
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "launch" and not command:
        parser.error("launch needs the engine's command after --, as in: launch -- python3 -m sglang.launch_server ...")
    if options.command == "launch" and options.group_size is not None:
        _check_group(parser, options)
    if options.command != "launch" and command:
        parser.error(f"{options.command} takes no command after --; only launch does")
    if options.command == "install":
        return _install(options.folder)
    if options.command == "inspect":
        if options.path is None and not options.adapter:
            parser.error("inspect needs --path or --adapter")
        return _inspect(options)
    if options.command == "launch":
        return _launch(options, command)
    sleep(options.seconds)
    return 0


def run() -> NoReturn:
    """Entry point of an archive. zipapp's own start-up code drops the exit code that a function returns."""
    sys.exit(main())


if __name__ == "__main__":
    run()
