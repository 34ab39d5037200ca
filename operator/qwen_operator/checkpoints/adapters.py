"""The LoRA adapters of a deployment: which ones, and what an inspection found in their files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_runtime.checkpoints.adapter import AdapterFacts
from qwen_runtime.checkpoints.reading import InvalidFactsError, shown

_MOST = 64
_LONGEST = 1024
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)


@dataclass(frozen=True, slots=True)
class InspectedAdapter:
    """An adapter by its name, where it comes from, and the facts of its files.

    `uri` has @REVISION behind it if the spec names one. `commit` has 40 hexadecimal digits, "" for a claim.
    """

    name: str
    uri: str
    facts: AdapterFacts
    commit: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON object for `read`."""
        commit = {"commit": self.commit} if self.commit else {}
        return {"name": self.name, "uri": self.uri, "facts": self.facts.to_record(), **commit}


def of_report(adapters: Sequence[tuple[str, str]], report: Mapping[str, Any]) -> tuple[InspectedAdapter, ...]:
    """Adapters, by name and uri, with the facts in an inspection's report. Raises InvalidFactsError."""
    records = report.get("adapters") or []
    if not isinstance(records, list) or len(records) != len(adapters):
        raise InvalidFactsError(f"adapters in the report is {shown(records)}, it must have {len(adapters)} entries")
    commits = report.get("adapterCommits")
    known = commits if isinstance(commits, list) and len(commits) == len(records) else [""] * len(records)
    return tuple(
        InspectedAdapter(name, uri, AdapterFacts.from_record(record), _commit(commit))
        for (name, uri), record, commit in zip(adapters, records, known, strict=True)
    )


def read(records: object) -> tuple[InspectedAdapter, ...]:
    """The adapters of a stored record, () if it has none. Raises InvalidFactsError."""
    if records is None:
        return ()
    if not isinstance(records, list | tuple) or len(records) > _MOST:
        raise InvalidFactsError(f"adapters is {shown(records)}, it must be a list of at most {_MOST}")
    return tuple(_read(record) for record in records)


def _commit(value: object) -> str:
    return value if isinstance(value, str) and _COMMIT.fullmatch(value) else ""


def _read(record: object) -> InspectedAdapter:
    match record:
        case {"name": str(name), "uri": str(uri), "facts": facts, **rest}:
            if 0 < len(name) <= _LONGEST and 0 < len(uri) <= _LONGEST:
                return InspectedAdapter(name, uri, AdapterFacts.from_record(facts), _commit(rest.get("commit")))
    raise InvalidFactsError(f"an entry of adapters is {shown(record)}, it must have a name, a uri and facts")
