"""The published benchmark of llm-d's SLO-aware autoscaling, with our policies in our simulator.

Source: llm-d, guides/workload-autoscaling/slo-aware. Qwen3-32B on H100 with two GPUs per replica; prompts of about
4,000 and answers of about 1,000 tokens; constant rates, 12,480 requests in all; a first token within 3 s and 100 ms per
output token; 3 to 8 replicas; about 100 s to start. Published: 95.8 % kept with 5.93 replicas on average; 100 % with 8
fixed ones. The prefill rate and the KV tokens are theirs; the decode step is the roofline of replicas.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from bench.autoscaling.engine import Request, Speed
from bench.autoscaling.fleet import Case, Objective, Rule
from bench.autoscaling.replicas import replica
from bench.autoscaling.rules import Own, Static
from qwen_operator.scaling.policies import POLICIES

MODEL, GPU, TENSOR = "Qwen/Qwen3-32B", "NVIDIA-H100-80GB-HBM3", 2
RATES = ((2, 330), (4, 360), (6, 360), (8, 360), (10, 360), (4, 360), (1, 300))
"""Requests per second, and for how many seconds."""
PREFILL_TOKENS_PER_SECOND = 15_928
KV_TOKENS = 350_000
START_SECONDS = 100.0
LEAST, MOST = 3, 8
OBJECTIVE = Objective(first_token=3.0, long_prompt=0.0, output_token=0.1, least_output=1)
PUBLISHED = (0.958, 5.93)
"""The share that was kept, and the mean number of replicas."""
_PROMPT, _OUTPUT, _SPREAD = 4000, 1000, 0.1


def requests(seed: int, *, poisson: bool = False) -> list[Request]:
    """One request each 1 / rate s; with `poisson`, at random instants.

    Lengths vary by a tenth, because the source says "about".
    """
    chance, made, began = random.Random(seed), list[Request](), 0.0
    for rate, seconds in RATES:
        for number in range(rate * seconds):
            prompt, output = (max(1, round(chance.gauss(mean, mean * _SPREAD))) for mean in (_PROMPT, _OUTPUT))
            made.append(Request(began + (chance.uniform(0, seconds) if poisson else number / rate), prompt, output))
        began += seconds
    return sorted(made)


def speed() -> Speed:
    """Their replica. Their prefill rate contains the attention."""
    planned, _ = replica(MODEL, GPU, TENSOR)
    return replace(planned, prefill=1 / PREFILL_TOKENS_PER_SECOND, attention=0.0, pool=KV_TOKENS)


def case(seed: int, *, poisson: bool = False) -> Case:
    return Case(requests(seed, poisson=poisson), speed(), START_SECONDS, 0.0, LEAST, MOST, OBJECTIVE, seed)


def rules() -> Mapping[str, Callable[[], Rule]]:
    """The operator's policies with these bounds, with a window of the default and of one start, and fixed sizes."""
    ours = {
        f"{name} (ours), {window:.0f} s": partial(Own, policy, window, LEAST, MOST)
        for name, policy in POLICIES.items()
        for window in (300.0, START_SECONDS)
    }
    return ours | {f"fixed: {size}": partial(Static, size) for size in (6, 7, MOST)}
