"""What the status says about scaling, whoever decides about the number of replicas. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from qwen_operator.api.conditions import ConditionType, Reason, Verdict
from qwen_operator.api.spec import Scaling, Spec
from qwen_operator.api.status import ScalingReport
from qwen_operator.scaling.load import Load
from qwen_operator.scaling.types import ScalingState


@dataclass(frozen=True, slots=True)
class Report:
    """The number of replicas that are wanted, and what the status says of it. `verdicts` are ScalingActive and
    ScalingLimited."""

    scaling: ScalingReport
    verdicts: tuple[Verdict, Verdict]
    load: str

    @property
    def wanted(self) -> int:
        return self.scaling.wanted


def report(spec: Spec, state: ScalingState | None, writer: tuple[str, str] | None, held: int) -> Report:
    """`writer` is who set spec.replicas, and when; `held` the replicas that exist and are not draining: where the
    load is to decide but nothing is known of it yet, that number stays."""
    if spec.replicas is not None:
        said = ScalingReport(spec.replicas, Reason.REPLICAS_SET, _set(spec, writer))
        active = False
    elif spec.scaling is None:
        said = ScalingReport(
            1, Reason.NOT_CONFIGURED, "one replica, since neither spec.scaling nor spec.replicas is set"
        )
        active = False
    elif state is None or state.wanted is None:
        wanted = _bounded(held, spec.scaling)
        message = "the load was not looked at yet; the number of replicas stays until then"
        said, active = ScalingReport(wanted, Reason.NOTHING_TO_MEASURE, message), False
    else:
        # The bounds may have changed since the state was made.
        said = ScalingReport(_bounded(state.wanted, spec.scaling), state.reason, state.message)
        active = state.active
    limited = active and said.reason == Reason.AT_MAXIMUM
    return Report(
        scaling=said,
        verdicts=(
            Verdict(ConditionType.SCALING_ACTIVE, active, said.reason, said.message),
            Verdict(ConditionType.SCALING_LIMITED, limited, said.reason, _limited(said)),
        ),
        load=state.load if state else Load.NONE,
    )


def _bounded(number: int, scaling: Scaling) -> int:
    return min(max(number, scaling.min_replicas), scaling.max_replicas)


def _set(spec: Spec, writer: tuple[str, str] | None) -> str:
    # A patch of the scale subresource, as kubectl scale sends it, is the one write that leaves no field manager.
    unnamed = "through the scale subresource (kubectl scale or an autoscaler)"
    by = f"by {writer[0]} at {writer[1]}" if writer else unnamed
    rests = "; spec.scaling rests until the field is removed" if spec.scaling else ""
    return f"spec.replicas is {spec.replicas}, set {by}{rests}"


def _limited(said: ScalingReport) -> str:
    return f"{said.message}: raise spec.scaling.maxReplicas, or requests wait"
