"""Values that nobody should write, and how many of them to try."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("QWEN_FUZZ_EXAMPLES", "100"))
"""Examples of each test. `make test-slow` tries for about an hour."""

fuzzed = settings(
    deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

# What broke a decoder once, or looks as if it could.
NASTY: tuple[Any, ...] = (
    "[" * 4000,
    '{"a":' * 4000,
    '{"log":["\\ud800"],"phase":"\\udfff","reason":"Unknown"}',
    '{"exitCode":1' + "0" * 5000 + ',"reason":"Unknown"}',
    '{"exitCode":1e999,"reason":["Unknown"],"phase":{"a":1},"log":{"b":2}}',
    '{"reason":"Serving","phase":"' + "P" * 5000 + '"}',
    '{"error":{"reason":7,"message":["m"]}}',
    "\x1b[31mred\x00\u202e",
    "9" * 5000,
    "²",
    10**4000,
    -(10**30),
    float("inf"),
    float("nan"),
    True,
    "9999-12-31T23:59:59+00:00",
    "0001-01-01T00:00:00+14:00",
    "2026-11-24T12:00:00Z",
    "--max-running-requests=" + "9" * 5000,
    "False",
    "True",
    "Error",
    "CrashLoopBackOff",
    "engine",
    {},
    [],
)

leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(NASTY))
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)


def record(*known: str, inner: st.SearchStrategy[Any] = anything) -> st.SearchStrategy[dict[str, Any]]:
    """An object with some of the known members, each of any type."""
    return st.dictionaries(st.sampled_from(known), inner, max_size=len(known))


def either(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly the right shape, sometimes anything."""
    return st.one_of(good, good, good, anything)


def nested(levels: int) -> Any:
    """An object of so many levels."""
    value: Any = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value
