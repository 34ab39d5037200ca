"""`qwen-operator models`."""

import argparse
import json
import sys

from qwen_operator.checkpoints import catalog, parallel

_GIB = 1 << 30


def options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("words", nargs="*", metavar="WORD", help="list only models whose names contain all these words")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")


def main(arguments: argparse.Namespace) -> int:
    """List the published models that the operator can plan without reading a file."""
    words = [word.casefold() for word in arguments.words]
    rows = [one for one in catalog.entries() if all(word in one.repository.casefold() for word in words)]
    if arguments.output == "json":
        json.dump([_record(one) for one in rows], sys.stdout, indent=2)
        sys.stdout.write("\n")
        return 0
    width = max((len(one.repository) for one in rows), default=5)
    lines = [f"{'MODEL':{width}}  {'FORMAT':10}  {'WEIGHTS':>10}  {'KV/TOKEN':>10}  {'CONTEXT':>8}  SPLITS ON 8 GPUS"]
    for one in rows:
        facts = one.checkpoint
        mark = "" if one.verified else "  (not verified)"
        lines.append(
            f"{one.repository:{width}}  {one.format:10}  {facts.weight_bytes / _GIB:6.2f} GiB  "
            f"{facts.kv_bytes_per_token(1) / 1024:6g} KiB  {facts.max_positions:8}  {_splits(one)}{mark}"
        )
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _splits(entry: catalog.CatalogEntry) -> str:
    shown: dict[int, str] = {}
    for tp, ep in parallel.valid(entry.checkpoint, 8):
        shown.setdefault(tp, f"{tp}" if ep == 1 else f"{tp} (EP {ep})")
    return ", ".join(shown.values())


def _record(entry: catalog.CatalogEntry) -> dict[str, object]:
    facts = entry.checkpoint
    return {
        "model": entry.repository,
        "family": entry.family,
        "format": entry.format,
        "architecture": facts.architecture,
        "weightBytes": facts.weight_bytes,
        "kvBytesPerToken": facts.kv_bytes_per_token(1),
        "contextTokens": facts.max_positions,
        "parallel": [{"tensor": tp, "expert": ep} for tp, ep in parallel.valid(facts, 8)],
        "verified": entry.verified,
    }
