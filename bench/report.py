"""The docs that bench.tensor_parallel writes: a table of every model and a picture of the memory of one GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.comparison import BOUNDARY, NO_DATA, Peer, Row, Summary
from bench.oracle import CARDS
from bench.picture import Bar, svg
from qwen_operator.hardware.boards import short_name
from qwen_operator.planning.types import Plan

DOCS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
TABLE, PICTURE = "tensor-parallel.md", "memory-per-gpu.svg"
_GIB = 2**30
_PEER_CARD = "NVIDIA-H100-80GB-HBM3"
_SHOWN = (
    ("Qwen/Qwen1.5-7B-Chat", "NVIDIA-L40S"),
    ("Qwen/Qwen1.5-14B-Chat-GPTQ-Int4", "NVIDIA-L4"),
    ("Qwen/Qwen1.5-32B-Chat", "NVIDIA-L40S"),
    ("Qwen/Qwen1.5-72B-Chat", "NVIDIA-L40S"),
    ("Qwen/Qwen1.5-72B-Chat", "NVIDIA-H100-80GB-HBM3"),
    ("Qwen/Qwen1.5-72B-Chat", "NVIDIA-H200"),
    ("Qwen/Qwen1.5-72B-Chat-GPTQ-Int4", "NVIDIA-H100-80GB-HBM3"),
    ("Qwen/Qwen1.5-110B-Chat", "NVIDIA-H100-80GB-HBM3"),
    ("Qwen/Qwen2.5-7B-Instruct", "NVIDIA-L4"),
    ("Qwen/Qwen2.5-72B-Instruct", "NVIDIA-H100-80GB-HBM3"),
    ("Qwen/Qwen2-57B-A14B-Instruct", "NVIDIA-H100-80GB-HBM3"),
    ("Qwen/Qwen3-32B", "NVIDIA-H100-80GB-HBM3"),
    ("Qwen/Qwen3-235B-A22B-FP8", "NVIDIA-H100-80GB-HBM3"),
)


def write(summary: Summary) -> tuple[Path, ...]:
    """Writes both files and returns their paths."""
    DOCS.mkdir(parents=True, exist_ok=True)
    files = {DOCS / TABLE: markdown(summary), DOCS / PICTURE: picture(summary)}
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return tuple(files)


def picture(summary: Summary) -> str:
    """The picture, with the shown cases that have a plan."""
    by_case = {(row.case.entry.repository, row.case.card.product): row for row in summary.rows}
    shown = (by_case.get(key) for key in _SHOWN)
    return svg("Memory of one GPU, as planned", [bar for row in shown if row and (bar := _bar(row))])


def markdown(summary: Summary) -> str:
    """The page."""
    return "\n".join([*_head(), *_numbers(summary), *_table(summary.rows), ""])


def _bar(row: Row) -> Bar | None:
    plan = row.case.plan
    if not isinstance(plan, Plan):
        return None
    weights = plan.weight_bytes_per_rank / _GIB
    kv = plan.kv_tokens * plan.kv_bytes_per_token_per_rank / _GIB
    rest = row.case.card.mib / 1024 - weights - kv
    name = f"{row.case.entry.repository.removeprefix('Qwen/')}, {short_name(row.case.card.product)}"
    return Bar(name, f"TP {plan.tensor_parallel}, {plan.kv_tokens // 1000}k tokens", weights, kv, rest)


def _head() -> Iterator[str]:
    yield "# GPUs per replica, for every published model"
    yield ""
    yield (
        "`python -m bench.tensor_parallel --write-docs` writes this page. Nothing here ran on a GPU: the plan and the "
        "oracle are both calculations."
    )
    yield ""
    yield f"![Weights, KV cache and reserve of one GPU]({PICTURE})"
    yield ""
    yield "## What is compared"
    yield ""
    yield (
        "The benchmark plans every checkpoint of the catalog on one node with eight GPUs. The manifest only names the "
        "model, so one request of the model's own context must fit. The oracle (`bench/oracle.py`) is an independent "
        "calculation that shares no code with the planner. It takes the splits that SGLang 0.5.23 accepts from public "
        "data, and the free memory from public startup logs. It gives no answer if the memory that is needed is within "
        "5 % of the memory that exists."
    )
    yield ""


def _numbers(summary: Summary) -> Iterator[str]:
    yield "| | |"
    yield "|---|---|"
    yield f"| cases | {len(summary.rows)} |"
    yield f"| left out: within 5 % of a boundary | {summary.left_out(BOUNDARY)} |"
    yield f"| left out: no independent data for the model | {summary.left_out(NO_DATA)} |"
    yield f"| compared | {len(summary.compared)} |"
    yield f"| GPUs per replica / smallest valid, mean | {summary.ratio:.4f} |"
    yield f"| disagreements | {len(summary.disagreements)} |"
    yield f"| OME | {_peer(summary.ome)} |"
    yield f"| KAITO | {_peer(summary.kaito)} |"
    yield ""
    yield (
        "OME has a runtime for each model, with a fixed tensor parallel size for every GPU product "
        "(sgl-project/ome@17b77ed). KAITO calculates the number of nodes from the size of the files. It takes all GPUs "
        "of a node, unless the weights fill less than half of one GPU (kaito-project/kaito@056b828). The benchmark "
        "applies their rules as their source code states them; it does not run these operators. Their numbers are also "
        "per replica."
    )
    for row in summary.disagreements:
        smallest = row.verdict.gpus if row.verdict else None
        yield ""
        yield (
            f"Disagreement: {row.case.entry.repository} on {row.case.card.product}: plan {row.planned or 'none'}, "
            f"oracle {smallest or 'none'}."
        )
    yield ""


def _peer(peer: Peer) -> str:
    return (
        f"has an answer for {peer.cases} cases: {peer.ratio:.2f} times the smallest number of GPUs; the engine rejects "
        f"the split in {peer.refused} cases, and {peer.too_few} have too little memory"
    )


def _table(rows: Sequence[Row]) -> Iterator[str]:
    """One line for each distinct set of answers of a model and format. Chat and base variants usually share a line."""
    yield "## Table"
    yield ""
    yield (
        "The numbers are GPUs per replica. – means that the model does not fit on one node with eight GPUs. ~ marks a "
        "case within 5 % of a boundary, and * a case without independent data. The last two columns are for the H100. "
        "There, ! means that the engine rejects the split."
    )
    yield ""
    names = [short_name(card.product) for card in CARDS]
    yield f"| model | format | context | {' | '.join(names)} | OME | KAITO |"
    yield "|---" * (len(names) + 5) + "|"
    lines: dict[tuple[str, ...], tuple[str, ...]] = {}
    for start in range(0, len(rows), len(CARDS)):
        line = _line(rows[start : start + len(CARDS)])
        key = (line[0].removesuffix("-Chat").removesuffix("-Instruct"), *line[1:-2])
        # If a peer has an answer for a variant, that variant is shown for all.
        if key not in lines or (line[-2] and not lines[key][-2]):
            lines[key] = line
    for line in lines.values():
        yield f"| {' | '.join(line)} |"


def _line(group: Sequence[Row]) -> tuple[str, ...]:
    """The cells of one model; `group` has one row per card."""
    entry = group[0].case.entry
    at_peers = next(row for row in group if row.case.card.product == _PEER_CARD)
    cells = [_cell(row) for row in group]
    chosen = (at_peers.ome, at_peers.kaito)
    others = ["" if one is None else f"{one.gpus}{'!' if one.refused else ''}" for one in chosen]
    name = entry.repository.removeprefix("Qwen/")
    return (name, entry.format, str(entry.checkpoint.max_positions), *cells, *others)


def _cell(row: Row) -> str:
    mark = {BOUNDARY: "~", NO_DATA: "*", None: ""}[row.left_out]
    return f"{row.planned or '–'}{mark}"
