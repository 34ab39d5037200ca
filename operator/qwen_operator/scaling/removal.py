"""Which engines the operator would remove first, and what those that go still have to do. Pure."""

from __future__ import annotations

from qwen_operator import untrusted
from qwen_operator.scaling.types import EnginePod, Sample

_LARGEST_INDEX = 999_999_999


def removal_order(engines: tuple[EnginePod, ...], sample: Sample) -> tuple[str, ...]:
    """The names of all engine pods in the order in which the operator would remove them.

    Pods that are not ready come first. Then draining pods, then the fewest requests and tokens, then the highest
    index. A ready pod without readable metrics counts as the busiest.
    """
    loads = {load.uid: load for load in sample.engines}

    def rank(engine: EnginePod) -> tuple[bool, bool, bool, int, int, int]:
        load = loads.get(engine.uid)
        busy = (load.requests, load.tokens_used) if load else (0, 0)
        index = untrusted.digits(engine.index, _LARGEST_INDEX, 0)
        return engine.ready, not engine.draining, load is None, *busy, -index

    return tuple(engine.pod for engine in sorted(engines, key=rank))


def unfinished(engines: tuple[EnginePod, ...], sample: Sample) -> dict[str, int]:
    """The number of requests in each readable draining pod, by uid."""
    draining = {engine.uid for engine in engines if engine.draining}
    return {load.uid: load.requests for load in sample.engines if load.uid in draining}
