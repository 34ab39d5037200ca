"""The data that planning takes and gives: engine defaults, plans, refusals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from qwen_operator.api.conditions import Reason
from qwen_operator.api.spec import EnvVar
from qwen_operator.hardware.inventory import short_name


@dataclass(frozen=True, slots=True)
class EngineDefaults:
    """The chart's engine settings, under every object's own. `image` without a tag gets ":v" + `version`."""

    image: str
    version: str
    args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """How one replica runs. Tokens are of KV cache over the whole replica; `shm_bytes` is the size of /dev/shm.

    `engine_image` is the complete reference. `args` are all engine options but those that name the model and the
    listening address. `selector` and `tolerations` place the pod; `steps` are the arithmetic as readable lines;
    `warnings` say which settings void the prediction or could not be checked; `message` is one sentence.
    """

    gpu_product: str
    gpus_per_replica: int
    tensor_parallel: int
    context_tokens: int
    kv_tokens: int
    startup_seconds: int
    engine_image: str
    engine_version: str
    args: tuple[str, ...]
    env: tuple[EnvVar, ...]
    shm_bytes: int
    steps: tuple[str, ...]
    selector: Mapping[str, str]
    tolerations: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    message: str = ""

    @property
    def gpus(self) -> str:
        """GPUs per replica in short, e.g. 4xH100-80GB."""
        return f"{self.gpus_per_replica}x{short_name(self.gpu_product)}"

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` turns back into an equal value."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Plan:
        """The inverse of `to_json`; raises TypeError or KeyError on a record of another shape."""
        members = {field.name: record[field.name] for field in fields(cls)}
        lists = {key: tuple(value) for key, value in members.items() if isinstance(value, list)}
        return cls(**{**members, **lists, "env": tuple(EnvVar(**item) for item in members["env"])})

    def status(self, revision: str) -> dict[str, Any]:
        """The plan as it stands in `status.plan`."""
        return {
            "hash": revision,
            "gpuProduct": self.gpu_product,
            "gpusPerReplica": self.gpus_per_replica,
            "parallelism": {"tensor": self.tensor_parallel},
            "contextTokens": self.context_tokens,
            "kvTokens": self.kv_tokens,
            "startupSeconds": self.startup_seconds,
            "engineVersion": self.engine_version,
            "args": list(self.args),
            "steps": [*self.steps, *(f"warning: {warning}" for warning in self.warnings)],
        }


@dataclass(frozen=True, slots=True)
class Alternative:
    """A change that would fit: written into the spec it is a plan."""

    context_tokens: int
    gpu_product: str
    gpus_per_replica: int


@dataclass(frozen=True, slots=True)
class NoFit:
    """Why there is no plan: `message` for the condition, `steps` the arithmetic, `alternatives` what would do."""

    reason: Reason
    message: str
    steps: tuple[str, ...] = ()
    alternatives: tuple[Alternative, ...] = ()

    def status(self) -> dict[str, Any]:
        """The refusal as it stands in `status.noFit`."""
        return {
            "steps": list(self.steps),
            "alternatives": [
                {
                    "contextTokens": alternative.context_tokens,
                    "gpuProduct": alternative.gpu_product,
                    "gpusPerReplica": alternative.gpus_per_replica,
                }
                for alternative in self.alternatives
            ],
        }
