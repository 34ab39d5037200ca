"""Reasons from the log lines that SGLang 0.5.23 and its libraries really print."""

import pytest

from qwen_runtime.classify import classify
from tests.unit.runtime.known import KNOWN

SIGQUIT = "[2026-11-23 10:16:57] SIGQUIT received. signum=None, frame=None. It usually means one child failed."

LINES = [
    ("BadFlag", "sglang serve: error: unrecognized arguments: --no-such-flag 1"),
    (
        "BadFlag",
        "launch_server.py: error: argument --dtype: invalid choice: 'float8_e4m3' (choose from 'auto', 'half')",
    ),
    ("BadFlag", "sglang serve: error: argument --port: expected one argument"),
    ("BadFlag", "AssertionError: served_model_name cannot contain a colon (':') character. Invalid value: 'a:b'"),
    (
        "ModelNotFound",
        "OSError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/models/x'. "
        "Use `repo_type` argument if needed.",
    ),
    ("ModelNotFound", "RuntimeError: Cannot find any model weights with `/models/source/x`"),
    ("ModelNotFound", "FileNotFoundError: No such file or directory: /models/source/gone/model.safetensors"),
    ("UnreadableWeights", "FileNotFoundError: No such file or directory: /models/source/here/model.safetensors"),
    ("UnreadableWeights", "PermissionError: [Errno 13] Permission denied: '/models/source/x/config.json'"),
    (
        "TruncatedWeights",
        "safetensors._safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata, "
        "file not fully covered",
    ),
    ("InvalidConfig", "OSError: It looks like the config file at '/m/config.json' is not a valid JSON file."),
    (
        "ContextTooLong",
        "ValueError: Warning: User-specified context_length (16384) is greater than the derived context_length (4096).",
    ),
    (
        "UnknownArchitecture",
        "ValueError: Cannot find model module. 'FooForCausalLM' is not a registered model in the Transformers library",
    ),
    (
        "ConfigMismatch",
        "RuntimeError: the checkpoint has code of its own, which the engine runs only with the option "
        "--trust-remote-code",
    ),
    ("ConfigMismatch", "ValueError: Currently, only 4bits is supported on CPU with AMX."),
    (
        "ConfigMismatch",
        "ValueError: The quantization method fp8 is not supported for the current GPU. Minimum capability: 89",
    ),
    ("TokenizerMissing", "RuntimeError: cannot reshape tensor of 0 elements into shape [0, -1, 32] because"),
    (
        "PortInUse",
        "ERROR:    [Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use",
    ),
    (
        "EngineKilled",
        "RuntimeError: Rank 0 scheduler died during initialization (exit code: -9). If exit code is -9 (SIGKILL), "
        "a common cause is the OS OOM killer.",
    ),
    ("Unknown", "RuntimeError: Rank 0 scheduler died during initialization (exit code: -11)."),
    (
        "CudaOutOfMemory",
        "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static. "
        "Current value: mem_fraction_static=0.5",
    ),
    ("CudaOutOfMemory", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
    ("CudaOutOfMemory", "Exception: Capture cuda graph failed: something"),
    (
        "NcclFailure",
        "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [10.0.0.1]:4: "
        "Connection reset by peer",
    ),
    (
        "NcclFailure",
        "torch.distributed.DistStoreError: Timed out after 41 seconds waiting for clients. 1/2 clients joined.",
    ),
    ("NcclFailure", "torch.distributed.DistBackendError: NCCL error in: x.cpp:1, unhandled system error"),
    ("AuthRequired", "requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: https://example.org"),
    ("AuthRequired", "huggingface_hub.errors.GatedRepoError: 403 Client Error."),
    ("DiskFull", "OSError: [Errno 28] No space left on device: '/cache/x'"),
    ("Hung", "[2026-11-23 10:16:57 TP0] Watchdog timeout (self.watchdog_timeout=300, self.soft=False)"),
    ("Unknown", "NotImplementedError: Could not run 'sglang::awq_dequantize' with arguments from the 'CPU' backend."),
    ("HostOutOfMemory", "RuntimeError: [enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ("Unknown", SIGQUIT),
    ("Unknown", "Ignore import error when loading sglang.srt.models.x: CUDA out of memory"),
    ("Unknown", "[2026-11-23 10:16:57] ERROR Failed to load NCCL library from /none. NCCL error: no file"),
    ("Unknown", "[2026-11-23 10:16:57] server_args={'model_path': '/No space left on device'}"),
]


def never(_path: str) -> bool:
    return False


@pytest.mark.parametrize(("reason", "line"), LINES)
def test_a_line_gives_its_reason(reason: str, line: str) -> None:
    verdict = classify(
        ["Load weight begin. avail mem=17.09 GB", line, "  File x.py"], KNOWN, lambda path: "/here/" in path
    )
    assert verdict.reason.value == reason
    assert verdict.line == (line if reason != "Unknown" else "")


def test_a_cause_beats_its_consequence_wherever_it_stands() -> None:
    cause = "[2026-11-23 10:16:57 TP1] torch.OutOfMemoryError: CUDA out of memory."
    effect = "[2026-11-23 10:16:58 TP0] RuntimeError: NCCL error: unhandled system error"
    for lines in ([cause, effect], [effect, cause]):
        assert classify(lines, KNOWN, never).line == cause


def test_nothing_said_is_unknown() -> None:
    assert classify([], KNOWN, never).reason.value == "Unknown"
