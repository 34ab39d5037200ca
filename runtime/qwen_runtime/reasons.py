"""The reasons and phases of reports. The operator uses the same reasons in conditions."""

from enum import Enum


class ReportReason(str, Enum):  # noqa: UP042 - StrEnum needs Python 3.11, engine images may have 3.10
    """Why a checkpoint was rejected, or why an engine ended."""

    ADAPTER_MISMATCH = "AdapterMismatch"
    AUTH_REQUIRED = "AuthRequired"
    BAD_FLAG = "BadFlag"
    CONFIG_MISMATCH = "ConfigMismatch"
    CONTEXT_TOO_LONG = "ContextTooLong"
    CUDA_OUT_OF_MEMORY = "CudaOutOfMemory"
    DISK_FULL = "DiskFull"
    ENGINE_KILLED = "EngineKilled"
    GROUP_INCOMPLETE = "GroupIncomplete"
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    HUNG = "Hung"
    INVALID_CONFIG = "InvalidConfig"
    MEMBER_ENDED = "MemberEnded"
    MODEL_NOT_FOUND = "ModelNotFound"
    NCCL_FAILURE = "NcclFailure"
    PORT_IN_USE = "PortInUse"
    TOKENIZER_MISSING = "TokenizerMissing"
    TRUNCATED_WEIGHTS = "TruncatedWeights"
    UNKNOWN = "Unknown"
    UNKNOWN_ARCHITECTURE = "UnknownArchitecture"
    UNREADABLE_WEIGHTS = "UnreadableWeights"


class Phase(str, Enum):  # noqa: UP042 - as above
    """How far an engine had come, in the order of its log."""

    STARTING = "Starting"
    LOAD_WEIGHTS = "LoadWeights"
    CAPTURE_GRAPHS = "CaptureGraphs"
    WARM_UP = "WarmUp"
    SERVING = "Serving"
