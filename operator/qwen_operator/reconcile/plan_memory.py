"""Remembers whether a pinned revision would be planned differently today."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from qwen_operator.config.types import Config
from qwen_operator.hardware.inventory import Inventory
from qwen_operator.manifests.revisions import PinnedRevision


@dataclass(frozen=True, slots=True)
class PlanInputs:
    """What the answer depends on besides the revision's spec, which the pinned revision stands for."""

    pinned: PinnedRevision
    inventory: Inventory
    config: Config

    def same_objects(self, other: PlanInputs) -> bool:
        """Whether nothing was read anew; comparing the values would take as long as planning."""
        return self.pinned is other.pinned and self.inventory is other.inventory and self.config is other.config


@dataclass(slots=True)
class PlanMemory:
    """One answer for each QwenDeployment, by its uid.

    The answer is that of a pure function, which takes most of the time of a decision. So a decision stays the same
    with this memory and without it.
    """

    _answers: dict[str, tuple[PlanInputs, bool]] = field(default_factory=dict)

    @property
    def remembered(self) -> set[str]:
        """The uids of the QwenDeployments with a remembered answer."""
        return set(self._answers)

    def would_differ(self, uid: str, inputs: PlanInputs, compute: Callable[[], bool]) -> bool:
        """The remembered answer; `compute` gives it where an input changed."""
        known = self._answers.get(uid)
        if known is not None and known[0].same_objects(inputs):
            return known[1]
        answer = compute()
        self._answers[uid] = (inputs, answer)
        return answer

    def keep(self, uids: set[str]) -> None:
        """Forget all other QwenDeployments."""
        self._answers = {uid: answer for uid, answer in self._answers.items() if uid in uids}
