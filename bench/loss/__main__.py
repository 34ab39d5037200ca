"""Prints the table of losses and a verdict; exit status 1 if a request was lost or executed twice without need.

A request is lost if it ends in anything but its complete answer. A stream whose engine is killed after it had begun
cannot be completed by anybody; it is counted apart.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from pathlib import Path

from bench.loss.picture import picture
from bench.loss.run import HEADER, SCENES, Load, Result, run
from tests.unit.gateway.proxied import gateway


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.loss", description=__doc__)
    parser.add_argument("--cycles", type=int, default=10, help="of each kind of event")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--pause", type=float, default=4.0, help="seconds between two events")
    parser.add_argument("--event", choices=list(SCENES), action="append", help="only this one; may be repeated")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of one rollout and one wake")
    options = parser.parse_args()
    print(HEADER, flush=True)
    good = True
    for event in options.event or SCENES:
        result = counted(event, Load(options.cycles, options.clients, options.pause))
        print(result.row(), flush=True)
        for reason, count in Counter(result.tally.lost.values()).most_common(5):
            print(f"  lost {count} times: {reason}")
        good = good and result.good
        if options.pictures and event in ("rolled out", "put to sleep and woken"):
            name = event.replace(" ", "-")
            (options.pictures / f"{name}.svg").write_text(picture(result), encoding="utf-8")
    print("nothing lost, nothing twice" if good else "FAILED: requests were lost or executed twice")
    return 0 if good else 1


def counted(event: str, load: Load) -> Result:
    """The event in a gateway of its own."""
    with tempfile.TemporaryDirectory() as folder, gateway(Path(folder)) as running:
        return asyncio.run(run(running, event, load))


if __name__ == "__main__":
    sys.exit(main())
