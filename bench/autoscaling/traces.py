"""Reads traces: gzip or plain CSV with the columns arrival_s, input_tokens and output_tokens."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

from bench.autoscaling.engine import Request

SOURCES = """\
azure2023_conv.csv.gz: Azure/AzurePublicDataset data/AzureLLMInferenceTrace_conv.csv, commit b469a11 (CC-BY 4.0).
    58 min. An output of 0 counts as 1.
mooncake_conversation_dejitter.csv.gz: kvcache-ai/Mooncake FAST25-release/traces/conversation_trace.jsonl,
    commit 3b5a594 (Apache-2.0). 59 min. Its times are bins of 3 s; spread the requests over each bin.
servegen_mlarge_day01.csv.gz, servegen_mlarge_day10.csv.gz: regenerated from alibaba/ServeGen data/, commit f891d11
    (Apache-2.0). 24 h each, 24 of the 147 clients: real rates and lengths, made-up instants.
Convert each to the columns arrival_s,input_tokens,output_tokens; arrivals are seconds after the first request."""
"""Where the traces of the suites come from."""


def read(path: Path, start_hour: float = 0.0, hours: float | None = None) -> list[Request]:
    """The requests of a window, with arrivals from its start. Raises OSError, KeyError or ValueError for a bad file."""
    begin = start_hour * 3600
    end = float("inf") if hours is None else begin + hours * 3600
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
        rows = [
            Request(float(row["arrival_s"]) - begin, int(row["input_tokens"]), max(1, int(row["output_tokens"])))
            for row in csv.DictReader(file)
            if begin <= float(row["arrival_s"]) < end
        ]
    return sorted(rows)
