"""`qwen-operator replay`: what a scaling policy decides over a recording, beside what was decided then.

It runs the operator's own loop. Only the clock, the engines and the gateway come from the recording.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from qwen_operator.api.conditions import Reason
from qwen_operator.cli import recordings
from qwen_operator.cli.files import InputError
from qwen_operator.controller.autoscaler import Autoscaler, Pace, Sources
from qwen_operator.scaling.demand import Demand
from qwen_operator.scaling.page import Reading, Trouble
from qwen_operator.scaling.policies import DEFAULT, POLICIES
from qwen_operator.scaling.recording import Looked
from qwen_operator.scaling.types import EnginePod, ScaledDeployment, ScalingState
from qwen_operator.untrusted import clean

MOST_RUNS = 10_000
MOST_ROWS = 100_000
LONGEST_WINDOW = 86_400.0
LARGEST_SIZE = 100
_LONGEST = 300
_Part = tuple[str, str, str, str]


def options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("file", nargs="+", metavar="FILE", help="recordings, in the order of their names; - is stdin")
    parser.add_argument("--deployment", metavar="NAMESPACE/NAME", help="only this QwenDeployment (default: all)")
    parser.add_argument("--policy", choices=tuple(POLICIES), help="instead of the recorded policy")
    parser.add_argument("--min", type=int, metavar="N", help="instead of the recorded minReplicas")
    parser.add_argument("--max", type=int, metavar="N", help="instead of the recorded maxReplicas")
    parser.add_argument("--window", type=float, metavar="SECONDS", help="instead of the recorded stabilizationSeconds")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")


def main(arguments: argparse.Namespace) -> int:
    """Print when and why the size changes. Exit code 0, or 2 if the recording or an option cannot be used."""
    # Each decision is a log line of the loop. An error of a policy is one too, and is wanted here.
    logging.getLogger("qwen_operator.controller.autoscaler").setLevel(logging.ERROR)
    try:
        runs = asyncio.run(_replayed(arguments, Other.of(arguments)))
    except InputError as error:
        sys.stderr.write(f"qwen-operator replay: {error}\n")
        return 2
    if arguments.output == "json":
        sys.stdout.write(json.dumps({"runs": [run.record() for run in runs]}, indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(line for run in runs for line in run.text()) + "\n")
    return 0


@dataclass(frozen=True, slots=True)
class Other:
    """What the user wants instead of the recorded settings; None keeps a setting."""

    policy: str | None = None
    least: int | None = None
    most: int | None = None
    window: float | None = None

    @classmethod
    def of(cls, given: argparse.Namespace) -> Other:
        """The options. Raises InputError for a wrong one."""
        for name, value, low, high in (
            ("--min", given.min, 0, LARGEST_SIZE),
            ("--max", given.max, 1, LARGEST_SIZE),
            ("--window", given.window, 0, LONGEST_WINDOW),
        ):
            if value is not None and not low <= value <= high:
                raise InputError(f"{name} is {value:g}: it must be from {low} to {high:g}")
        return cls(given.policy, given.min, given.max, given.window)

    def applied(self, deployment: ScaledDeployment) -> ScaledDeployment:
        """The deployment with these settings. Raises InputError if they do not go together, or if one is unknown."""
        policy = self.policy or deployment.policy or DEFAULT
        if policy not in POLICIES:
            known = " or ".join(POLICIES)
            raise InputError(f"the recorded policy {clean(policy, 60)} is unknown: choose {known} with --policy")
        bounds = deployment.bounds
        if bounds is not None:
            if self.least == 0 < bounds.least:
                raise InputError(
                    f"--min is 0, but minReplicas was {bounds.least}, so the recording has no looks at the gateway: it "
                    "must be at least 1"
                )
            bounds = replace(
                bounds,
                least=bounds.least if self.least is None else self.least,
                most=bounds.most if self.most is None else self.most,
                window=bounds.window if self.window is None else self.window,
            )
            if bounds.least > bounds.most:
                raise InputError(f"at least {bounds.least} replicas and at most {bounds.most}: set --min or --max too")
        return replace(deployment, policy=policy, bounds=bounds)


@dataclass(slots=True)
class Tally:
    """A sum over the looks: replica-seconds of the wanted size, and how it changed."""

    seconds: float = 0.0
    changes: int = 0
    largest: int = 0
    wanted: int | None = None

    def add(self, wanted: int | None, passed: float) -> None:
        """One more look, `passed` seconds after the last one, at which the wanted number was the one before."""
        self.seconds += (self.wanted or 0) * passed
        self.changes += self.wanted is not None and wanted is not None and wanted != self.wanted
        self.largest = max(self.largest, wanted or 0)
        self.wanted = wanted

    def record(self) -> dict[str, Any]:
        return {"replicaHours": round(self.seconds / 3600, 3), "changes": self.changes, "largest": self.largest}


@dataclass(frozen=True, slots=True)
class Row:
    """A look at which the recorded or the replayed decision changed."""

    time: float
    recorded: int | None
    replayed: int | None
    why: str


class Run:
    """One deployment, as one operator process saw it from its first look on."""

    def __init__(self, first: Looked) -> None:
        self.first = self.last = first
        self.looks = self.same = self.missing = 0
        self.recorded, self.replayed = Tally(), Tally()
        self.rows: list[Row] = []
        self._now = first
        self._deployment = first.deployment
        sources = Sources(lambda: [self._deployment], self, self._demand)
        self._scaler = Autoscaler(sources, lambda _key: None, Pace(clock=lambda: self._now.at))

    async def read(self, engine: EnginePod) -> Reading | Trouble:
        """What the recording has of this engine."""
        page = self._now.readings.get(engine.uid, Reason.METRICS_MISSING)
        return page if isinstance(page, Reading) else Trouble(page, "")

    async def _demand(self) -> Demand:
        look = self._now.demand
        ready, read = (1, 1) if look.complete else (2, 0 if look.silent else 1)
        # The recorded demand is the sum over all names.
        models = dict.fromkeys(self._deployment.names[:1], look.demand)
        return Demand(models, ready, read)

    async def look(self, looked: Looked, other: Other) -> None:
        """Decide about one more look."""
        if looked.at < self.last.at or looked.number < self.last.number:
            name = "/".join(looked.deployment.key)
            raise InputError(f"{clean(name, 200)}: a look is older than the one before: give the files in their order")
        self.missing += max(0, looked.number - self.last.number - 1) if self.looks else looked.number - 1
        self._now, self._deployment = looked, other.applied(looked.deployment)
        await self._scaler.scrape()
        state = self._scaler.state(*looked.deployment.key, looked.deployment.uid)
        if state is None:
            raise InputError("a policy failed: the log line before this one shows the error")
        self._count(looked, state)

    def _count(self, looked: Looked, state: ScalingState) -> None:
        passed = looked.at - self.last.at
        old = self.rows[-1] if self.rows else None
        self.recorded.add(looked.state.wanted, passed)
        self.replayed.add(state.wanted, passed)
        self.same += _answer(state) == _answer(looked.state)
        self.looks, self.last = self.looks + 1, looked
        if old is None or (old.recorded, old.replayed) != (looked.state.wanted, state.wanted):
            if len(self.rows) == MOST_ROWS:
                raise InputError(f"the size changes more than {MOST_ROWS} times, which no recording does")
            why = clean(f"{state.reason}: {state.message}", _LONGEST)
            self.rows.append(Row(looked.time, looked.state.wanted, state.wanted, why))

    def text(self) -> Iterator[str]:
        """What a person reads."""
        deployment, bounds = self._deployment, self._deployment.bounds
        settings = (
            f"policy {deployment.policy}, {bounds.least} to {bounds.most} replicas, window {bounds.window:g} s"
            if bounds
            else "the load does not decide"
        )
        name = clean("/".join(deployment.key), 200)
        yield f"{name}: {self.looks} looks from {_clock(self.first.time)} to {_clock(self.last.time)}; {settings}"
        for note in self.notes():
            yield f"  {note}"
        yield f"  {'time':20} {'recorded':>8} {'replayed':>8}  why, in the replay"
        for row in self.rows:
            yield f"  {_clock(row.time):20} {_size(row.recorded):>8} {_size(row.replayed):>8}  {row.why}"
        for label, tally in (("recorded", self.recorded), ("replayed", self.replayed)):
            hours = f"{tally.seconds / 3600:.2f} replica-hours wanted"
            changes = f"{tally.changes} change{'s' * (tally.changes != 1)} of size"
            yield f"  {label}: {hours}, {changes}, largest size {tally.largest}"
        yield f"  the same decision at {self.same} of {self.looks} looks"
        yield ""

    def notes(self) -> Iterator[str]:
        """What makes decisions differ although the settings are the same."""
        if self.first.number > 1:
            yield (
                f"the recording begins with look {self.first.number} of this operator process: what it had learned "
                "before is unknown, so the first decisions can differ"
            )
        if between := self.missing - (self.first.number - 1):
            yield f"{between} looks within the recording are missing, so decisions can differ"

    def record(self) -> dict[str, Any]:
        """The same as data."""
        deployment, bounds = self._deployment, self._deployment.bounds
        settings: Mapping[str, Any] = (
            {"minReplicas": bounds.least, "maxReplicas": bounds.most, "stabilizationSeconds": bounds.window}
            if bounds
            else {}
        )
        changes = [
            {"time": _clock(row.time), "recorded": row.recorded, "replayed": row.replayed, "why": row.why}
            for row in self.rows
        ]
        return {
            "deployment": clean("/".join(deployment.key), 200),
            "policy": deployment.policy,
            **settings,
            "looks": self.looks,
            "missingLooks": self.missing,
            "sameDecisions": self.same,
            "recorded": self.recorded.record(),
            "replayed": self.replayed.record(),
            "changes": changes,
        }


async def _replayed(arguments: argparse.Namespace, other: Other) -> list[Run]:
    runs: dict[_Part, Run] = {}
    for looked in _chosen(recordings.looks(arguments.file), arguments.deployment):
        deployment = looked.deployment
        part = (*deployment.key, deployment.uid, looked.run)
        if part not in runs:
            if len(runs) == MOST_RUNS:
                raise InputError(f"more than {MOST_RUNS} deployments and operator runs: choose one with --deployment")
            runs[part] = Run(looked)
        await runs[part].look(looked, other)
    if not runs:
        which = f"of {clean(arguments.deployment, 200)}" if arguments.deployment else "at all"
        raise InputError(f"{', '.join(arguments.file)}: has no look {which}")
    return list(runs.values())


def _chosen(looks: Iterable[Looked], name: str | None) -> Iterator[Looked]:
    return (looked for looked in looks if name is None or "/".join(looked.deployment.key) == name)


def _answer(state: ScalingState) -> tuple[int | None, Reason, str]:
    return state.wanted, state.reason, state.message


def _size(number: int | None) -> str:
    return "-" if number is None else str(number)


def _clock(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return "?"
