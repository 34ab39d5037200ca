"""Conditions: their types, their reasons, and when they change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from qwen_operator.untrusted import clean


class ConditionType(StrEnum):
    """READY, PLANNED, MODEL_LOADED and SCALING_ACTIVE are always present, the others only while true (kstatus)."""

    READY = "Ready"
    PLANNED = "Planned"
    MODEL_LOADED = "ModelLoaded"
    SCALING_ACTIVE = "ScalingActive"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    DEGRADED = "Degraded"
    SCALING_LIMITED = "ScalingLimited"


ALWAYS = (
    ConditionType.READY,
    ConditionType.PLANNED,
    ConditionType.MODEL_LOADED,
    ConditionType.SCALING_ACTIVE,
)


class Reason(StrEnum):
    """Reasons of conditions and Events. They are a public interface: alerts and scripts match them."""

    # it works
    SERVING = "Serving"
    SCALED = "Scaled"
    ASLEEP = "Asleep"
    SUSPENDED = "Suspended"
    FITS = "Fits"
    LOADED = "Loaded"
    # on the way
    WAKING = "Waking"
    PENDING = "Pending"
    INSPECTING = "Inspecting"
    WAITING_FOR_GPUS = "WaitingForGpus"
    STARTING = "Starting"
    DOWNLOADING = "Downloading"
    LOADING = "Loading"
    REPLACING = "Replacing"
    REPLICA_LOST = "ReplicaLost"
    WAITING_FOR_NODE = "WaitingForNode"
    QUOTA_EXCEEDED = "QuotaExceeded"
    DRAINING = "Draining"
    # scaling: the load decides
    STEADY = "Steady"
    SCALING_UP = "ScalingUp"
    SCALING_DOWN = "ScalingDown"
    AT_MAXIMUM = "AtMaximum"
    # scaling: something else decides
    NOT_CONFIGURED = "NotConfigured"
    REPLICAS_SET = "ReplicasSet"
    ADVISORY = "Advisory"
    NOTHING_TO_MEASURE = "NothingToMeasure"
    METRICS_MISSING = "MetricsMissing"
    METRICS_UNAUTHORIZED = "MetricsUnauthorized"
    METRICS_FROZEN = "MetricsFrozen"
    METRICS_INVALID = "MetricsInvalid"
    GATEWAY_SILENT = "GatewaySilent"
    # only in Events
    SCALED_UP = "ScaledUp"
    SCALED_DOWN = "ScaledDown"
    GPUS_SHORT = "GpusShort"
    GPUS_GRANTED = "GpusGranted"
    DRAIN_TIMED_OUT = "DrainTimedOut"
    NODE_CORDONED = "NodeCordoned"
    NODE_LOST = "NodeLost"
    # rejected before a pod exists
    INVALID_SPEC = "InvalidSpec"
    NOT_ALLOWED = "NotAllowed"
    UNKNOWN_MODEL = "UnknownModel"
    UNKNOWN_ARCHITECTURE = "UnknownArchitecture"
    UNLABELLED_GPUS = "UnlabelledGpus"
    NO_GPUS = "NoGpus"
    DOES_NOT_FIT = "DoesNotFit"
    INVALID_OVERRIDE = "InvalidOverride"
    UNKNOWN_FLAG = "UnknownFlag"
    NAME_CONFLICT = "NameConflict"
    NAME_NOT_ALLOWED = "NameNotAllowed"
    FOREIGN_OBJECT = "ForeignObject"
    POD_REFUSED = "PodRefused"
    # the operator itself fails
    OPERATOR_ERROR = "OperatorError"
    # inspection
    INSPECTION_FAILED = "InspectionFailed"
    MODEL_NOT_FOUND = "ModelNotFound"
    INVALID_CONFIG = "InvalidConfig"
    ADAPTER_MISMATCH = "AdapterMismatch"
    ADAPTER_NOT_LOADED = "AdapterNotLoaded"
    TRUNCATED_WEIGHTS = "TruncatedWeights"
    UNREADABLE_WEIGHTS = "UnreadableWeights"
    TOKENIZER_MISSING = "TokenizerMissing"
    # a new revision does not come up
    REVISION_HELD = "RevisionHeld"
    # an engine has less than its plan promised
    PLAN_MISMATCH = "PlanMismatch"
    # the model cannot be fetched into the cache
    CACHE_UNUSABLE = "CacheUnusable"
    CHECKSUM_MISMATCH = "ChecksumMismatch"
    GATED_MODEL = "GatedModel"
    HUB_UNREACHABLE = "HubUnreachable"
    SOURCE_CHANGED = "SourceChanged"
    # the pod cannot start
    CLAIM_NOT_FOUND = "ClaimNotFound"
    CLAIM_NOT_BOUND = "ClaimNotBound"
    GROUP_NOT_PLACED = "GroupNotPlaced"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    IMAGE_VOLUMES_UNSUPPORTED = "ImageVolumesUnsupported"
    # the engine ended
    BAD_FLAG = "BadFlag"
    CONFIG_MISMATCH = "ConfigMismatch"
    CONTEXT_TOO_LONG = "ContextTooLong"
    CUDA_OUT_OF_MEMORY = "CudaOutOfMemory"
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    NCCL_FAILURE = "NcclFailure"
    AUTH_REQUIRED = "AuthRequired"
    DISK_FULL = "DiskFull"
    PORT_IN_USE = "PortInUse"
    HUNG = "Hung"
    STARTUP_OVERDUE = "StartupOverdue"
    ENGINE_KILLED = "EngineKilled"
    EVICTED = "Evicted"
    GROUP_INCOMPLETE = "GroupIncomplete"
    MEMBER_ENDED = "MemberEnded"
    UNKNOWN = "Unknown"


# Steps on the way to serving. Conditions show them; they make no Event.
PROGRESS = frozenset(
    {
        Reason.PENDING,
        Reason.INSPECTING,
        Reason.STARTING,
        Reason.DOWNLOADING,
        Reason.LOADING,
        Reason.REPLACING,
        Reason.SCALED,
        Reason.ASLEEP,
        Reason.SUSPENDED,
        Reason.WAKING,
    }
)
# Why a model cannot be fetched. Only the container `fetch` reports them.
FETCH_FAILURES = frozenset(
    {
        Reason.AUTH_REQUIRED,
        Reason.CACHE_UNUSABLE,
        Reason.CHECKSUM_MISMATCH,
        Reason.DISK_FULL,
        Reason.GATED_MODEL,
        Reason.HUB_UNREACHABLE,
        Reason.INVALID_CONFIG,
        Reason.MODEL_NOT_FOUND,
        Reason.SOURCE_CHANGED,
        Reason.TOKENIZER_MISSING,
        Reason.TRUNCATED_WEIGHTS,
        Reason.UNREADABLE_WEIGHTS,
    }
)
# The metrics of the engines cannot be used, so scaling does not know the load.
METRICS_LOST = frozenset(
    {
        Reason.METRICS_MISSING,
        Reason.METRICS_UNAUTHORIZED,
        Reason.METRICS_FROZEN,
        Reason.METRICS_INVALID,
    }
)
MESSAGE_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """The value that one condition should have now. `status` None means Unknown."""

    type: ConditionType
    status: bool | None
    reason: Reason
    message: str


def set_conditions(
    old: Iterable[Mapping[str, Any]], verdicts: Sequence[Verdict], generation: int, now: str
) -> list[dict[str, Any]]:
    """The new `status.conditions`: the verdicts in order, without optional ones that are not true.

    `lastTransitionTime` becomes `now` (RFC 3339) only if the status differs from the old one.
    """
    before = {str(condition.get("type")): condition for condition in old}
    return [
        _condition(before.get(verdict.type, {}), verdict, generation, now)
        for verdict in verdicts
        if verdict.type in ALWAYS or verdict.status is True
    ]


def _condition(old: Mapping[str, Any], verdict: Verdict, generation: int, now: str) -> dict[str, Any]:
    status = {True: "True", False: "False", None: "Unknown"}[verdict.status]
    kept = old.get("lastTransitionTime") if old.get("status") == status else None
    return {
        "type": str(verdict.type),
        "status": status,
        "observedGeneration": generation,
        "lastTransitionTime": kept or now,
        "reason": str(verdict.reason),
        "message": clip(verdict.message),
    }


def clip(message: str, limit: int = MESSAGE_LIMIT) -> str:
    """The message as one line of at most `limit` characters, without control characters."""
    return clean(message, limit)
