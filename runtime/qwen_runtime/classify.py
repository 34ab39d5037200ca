"""From an engine's last log lines to one reason.

The rules are an ordered table: the first rule with a matching line wins, whatever the order of the lines. So a cause
(one rank out of memory) beats its consequence (the other ranks' broken connections), which is often logged later.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwen_runtime.reasons import Reason


@dataclass(frozen=True, slots=True)
class Verdict:
    """A reason and the log line that gave it; the line is empty when nothing matched."""

    reason: Reason
    line: str = ""


def _rule(reason: Reason, *patterns: str) -> tuple[Reason, re.Pattern[str]]:
    return reason, re.compile("|".join(patterns), re.IGNORECASE)


_NOISE = re.compile(r"server_args=|Ignore import error when loading|Failed to load NCCL library|\] _fix_v5_\w+: ")
_MISSING_SHARD = re.compile(r"No such file or directory:? '?(/.*?\.safetensors)\b")

RULES: tuple[tuple[Reason, re.Pattern[str]], ...] = (
    _rule(
        Reason.BAD_FLAG,
        r"error: unrecognized arguments:",
        r"argument -[^:]*: (?:invalid|expected|not allowed|ignored)",
        r"error: ambiguous option:",
        r"error: the following arguments are required:",
        r"served_model_name cannot contain",
    ),
    _rule(
        Reason.AUTH_REQUIRED,
        r"40[13] Client Error",
        r"GatedRepoError",
        r"Cannot access gated repo",
        r"Access to model \S+ is restricted",
        r"Invalid (?:username or password|user token)",
    ),
    _rule(Reason.UNREADABLE_WEIGHTS, r"Permission ?(?:Error|denied).*\.(?:safetensors|json|gguf|bin)\b"),
    _rule(
        Reason.TRUNCATED_WEIGHTS,
        r"Error while deserializing header",
        r"incomplete metadata, file not fully covered",
        r"(?:MetadataIncompleteBuffer|InvalidHeaderDeserialization|HeaderTooLarge|InvalidHeaderLength)",
    ),
    _rule(Reason.DISK_FULL, r"No space left on device", r"Disk quota exceeded"),
    _rule(
        Reason.MODEL_NOT_FOUND,
        r"Repo id must be in the form",
        r"Repo id must use alphanumeric chars",
        r"Cannot find any model weights",
        r"is not a local folder and is not a valid model identifier",
        r"does not appear to have (?:a file named|files named) config\.json",
        r"RepositoryNotFoundError",
        r"LocalEntryNotFoundError",
        r"404 Client Error",
        _MISSING_SHARD.pattern,
    ),
    _rule(
        Reason.TOKENIZER_MISSING,
        r"cannot reshape tensor of 0 elements into shape \[0,",
        r"Can't load tokenizer for",
        r"Couldn't instantiate the backend tokenizer",
    ),
    _rule(Reason.PORT_IN_USE, r"address already in use", r"EADDRINUSE"),
    _rule(Reason.CONTEXT_TOO_LONG, r"User-specified context_length .* is greater than"),
    _rule(
        Reason.UNKNOWN_ARCHITECTURE,
        r"Cannot find model module",
        r"is not a registered model in the Transformers library",
        r"Model architectures .* (?:are|is) not supported",
        r"Transformers does not recognize this architecture",
    ),
    _rule(Reason.INVALID_CONFIG, r"is not a valid JSON file", r"Unrecognized model in "),
    _rule(
        Reason.CONFIG_MISMATCH,
        r"quantization method \S+ is not supported",
        r"only 4bits is supported on CPU",
        r"is not divisible by",
        r"size mismatch|shape mismatch",
    ),
    _rule(
        Reason.CUDA_OUT_OF_MEMORY,
        r"CUDA out of memory",
        r"torch\.(?:cuda\.)?OutOfMemoryError",
        r"CUDA error: out of memory",
        r"Not enough memory\. Please try to increase --mem-fraction-static",
        r"Capture cuda graph failed",
    ),
    _rule(
        Reason.HOST_OUT_OF_MEMORY,
        r"DefaultCPUAllocator: can't allocate memory",
        r"Cannot allocate memory",
        r"\bMemoryError\b",
    ),
    _rule(Reason.ENGINE_KILLED, r"exit code:? -9\b"),
    _rule(
        Reason.NCCL_FAILURE,
        r"ncclInternalError|ncclSystemError|ncclUnhandledCudaError|ncclRemoteError|ncclInvalidUsage|NCCL error",
        r"Watchdog caught collective operation timeout",
        r"DistStoreError|DistNetworkError|DistBackendError",
        r"gloo/transport/",
        r"Connection (?:reset|closed) by peer",
    ),
    _rule(Reason.HUNG, r"Watchdog timeout \(self\.watchdog_timeout="),
)


def classify(lines: Sequence[str], exists: Callable[[str], bool]) -> Verdict:
    """The verdict on log lines, oldest first. Of several lines of the winning rule the last is kept.

    `exists` tells whether a path is there: the engine's reader says "No such file" for a shard that it may not open.
    """
    signal = [line for line in lines if not _NOISE.search(line)]
    for reason, pattern in RULES:
        matching = [line for line in signal if pattern.search(line)]
        if matching:
            line = matching[-1]
            shard = _MISSING_SHARD.search(line)
            hidden = reason is Reason.MODEL_NOT_FOUND and shard is not None and exists(shard.group(1))
            return Verdict(Reason.UNREADABLE_WEIGHTS if hidden else reason, line)
    return Verdict(Reason.UNKNOWN)
