"""The objective of a QwenDeployment: how soon its answers should come."""

from __future__ import annotations

from dataclasses import dataclass

from qwen_operator.api.fields import described


@dataclass(frozen=True, slots=True)
class Objective:
    """How soon answers should come, and for how many of the requests."""

    time_to_first_token_milliseconds: int = described(
        "The first token of an answer should come within this time, in milliseconds. The engine measures it: time in "
        "the gateway, for example while a model wakes, is not part of it. Default: 2000.",
        default=2000,
        minimum=100,
        maximum=600000,
    )
    long_prompt_percent: int = described(
        "For a long prompt, the first token may take this percentage of the time that the prompt takes on a replica "
        "without other requests, if that is more than timeToFirstTokenMilliseconds. Default: 250.",
        default=250,
        minimum=100,
        maximum=10000,
    )
    time_per_output_token_milliseconds: int = described(
        "After the first token, an answer should take at most this time per token on average, in milliseconds. "
        "Default: 100.",
        default=100,
        minimum=5,
        maximum=10000,
    )
    attainment_percent: int = described(
        "How many of 100 requests should keep these times. A higher value keeps more spare replicas. Default: 99.",
        default=99,
        minimum=50,
        maximum=99,
    )

    @property
    def first_token_seconds(self) -> float:
        return self.time_to_first_token_milliseconds / 1000

    @property
    def output_token_seconds(self) -> float:
        return self.time_per_output_token_milliseconds / 1000

    @property
    def patience_seconds(self) -> float:
        """The longest time that a request may wait before its prefill begins.

        A short prompt may wait for first_token_seconds. A prompt whose prefill alone takes so long may wait for
        long_prompt_percent of that time, less the prefill itself.
        """
        return self.first_token_seconds * max(1.0, self.long_prompt_percent / 100 - 1)

    @property
    def late_share(self) -> float:
        """The share of requests that may miss the objective."""
        return (100 - self.attainment_percent) / 100
