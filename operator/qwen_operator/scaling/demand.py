"""What the gateway knows and the engines do not: requests for a model that no replica answers. Pure.

The proxy of each gateway pod shows them at `/demand` (gateway/lua/qwen/demand.lua). The pages come over the network, so
they are bounded and read in a guard.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from qwen_operator.untrusted import count, decode, whole

PAGE_BYTES = 4 * 1024 * 1024
"""The largest page. The longest entry of a name has about 190 bytes, so that it takes thousands of deployments of one
tenant to hide what others ask for."""
_LEVELS = 4
_MOST_HELD = 1_000_000
_LONGEST_SECONDS = 1e9


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """The demand for one served name, or for all names of a deployment.

    `held`: requests that wait in the gateway now. `oldest`: for how many seconds the first of them has waited.
    `asked`: seconds since the last request that found no replica, also if it did not wait. `came`: seconds since the
    last request of all. Both are infinite if there was none.
    """

    held: int = 0
    oldest: float = 0.0
    asked: float = inf
    came: float = inf

    def __add__(self, other: ModelDemand) -> ModelDemand:
        return ModelDemand(
            self.held + other.held,
            max(self.oldest, other.oldest),
            min(self.asked, other.asked),
            min(self.came, other.came),
        )


@dataclass(frozen=True, slots=True)
class DemandPage:
    """The page of one gateway pod, by served name. `hears`: it also shows requests that found a replica."""

    models: Mapping[str, ModelDemand]
    hears: bool


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the gateway for one deployment.

    `complete`: every gateway pod that serves clients was read, so `demand` is all there is. `silent`: none was.
    `hears`: it is complete, and has every request that came through the gateway.
    """

    demand: ModelDemand
    complete: bool
    silent: bool
    hears: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """The demand at all gateway pods. `ready` of them serve clients, and `read` of those were read just now.

    `hears`: all pages that were read show requests that found a replica too.
    """

    models: Mapping[str, ModelDemand] = field(default_factory=dict)
    ready: int = 0
    read: int = 0
    hears: bool = False

    def look(self, names: Iterable[str]) -> Look:
        """The demand for all of these served names together."""
        demand = sum((self.models[name] for name in names if name in self.models), ModelDemand())
        complete = 0 < self.ready == self.read
        return Look(demand, complete=complete, silent=not self.read, hears=complete and self.hears)


def read_page(content: bytes) -> DemandPage:
    """The demand on one page. Raises ValueError if it is no page of the proxy.

    An entry with a wrong number is left out. It does not hide the others.
    """
    if len(content) > PAGE_BYTES:
        raise ValueError(f"the page has more than {PAGE_BYTES} bytes")
    page = decode(content, _LEVELS)
    try:
        models, hears = page["models"].items(), page.get("hears") is True
    except (TypeError, LookupError, AttributeError):
        raise ValueError("the page has no models") from None
    entries = {str(name): _entry(entry) for name, entry in models}
    return DemandPage({name: entry for name, entry in entries.items() if entry is not None}, hears)


def merged(pages: Iterable[DemandPage]) -> dict[str, ModelDemand]:
    """The demand of several gateway pods."""
    models: dict[str, ModelDemand] = {}
    for page in pages:
        for name, demand in page.models.items():
            models[name] = models.get(name, ModelDemand()) + demand
    return models


def _entry(entry: Any) -> ModelDemand | None:
    if not isinstance(entry, Mapping):
        return None
    held, oldest = whole(entry.get("held"), 0, _MOST_HELD, -1), entry.get("oldest", 0)
    asked, came = entry.get("asked", inf), entry.get("came", inf)
    if held < 0 or not _seconds(oldest) or not all(since == inf or _seconds(since) for since in (asked, came)):
        return None
    return ModelDemand(held, float(oldest), float(asked), float(came))


def _seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and count(value, _LONGEST_SECONDS)
