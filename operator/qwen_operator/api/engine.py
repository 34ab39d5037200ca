"""`spec.engine`: the engine's image, options and environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qwen_operator.api.fields import Passthrough, Rule, described, matches

_PARSER_NAME = r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
_VERSION = r"^[0-9]+[.][0-9]+[.][0-9]+[-.+0-9A-Za-z]*$"


@dataclass(frozen=True, slots=True)
class EnvVar:
    """One environment variable: `value` as it is, or `valueFrom` a Kubernetes source."""

    RULES: ClassVar = (
        Rule(
            "!(has(self.value) && has(self.valueFrom))",
            "must have value or valueFrom, not both",
            lambda item: item.get("value") is None or item.get("valueFrom") is None,
        ),
    )

    name: str = described("Name of the variable.", max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")
    value: str | None = described(
        "Value of the variable. Without value and valueFrom, the variable is empty.", default=None, max_length=4096
    )
    value_from: Passthrough | None = described(
        "Source of the value, as in a container: secretKeyRef, configMapKeyRef, fieldRef or resourceFieldRef. "
        "Example: {secretKeyRef: {name: hf-token, key: token}}.",
        default=None,
    )


@dataclass(frozen=True, slots=True)
class Engine:
    """Overrides of the engine's image and options."""

    image: str | None = described(
        "Image of SGLang. If it has no tag or digest, the operator appends :v and the version. Default: the chart's "
        "engine.image, lmsysorg/sglang. Example: registry.example.com/sglang:v0.5.23-cu129.",
        default=None,
        min_length=1,
        max_length=512,
        pattern=r"^[!-~]+$",
    )
    version: str | None = described(
        "Version of SGLang in the image, without a v. It decides which options exist, and the tag of an image that "
        "has none. Default: the version in the image's tag, or else the chart's engine.version. Example: 0.5.23.",
        default=None,
        max_length=32,
        rules=(
            Rule(
                f"self.matches('{_VERSION}')",
                "must be a version of three numbers without a v; right would be 0.5.23",
                lambda version: matches(_VERSION, version),
            ),
        ),
    )
    args: tuple[str, ...] = described(
        "Options for SGLang. Write each as --name=value, as --name, or as two entries --name and value. They come "
        "after the planned options and the chart's options, and the last one of a name wins. The operator rejects "
        "options that it sets itself (model, name, address, parallel sizes, context length) and options that this "
        'version does not have. Example: ["--schedule-policy=lpm"].',
        default=(),
        max_items=64,
        list_type="atomic",
        items={"min_length": 1, "max_length": 2048},
    )
    env: tuple[EnvVar, ...] = described(
        "Environment variables for SGLang. They replace planned variables and the chart's variables of the same name.",
        default=(),
        max_items=64,
        list_type="map",
        list_map_keys=["name"],
    )
    kv_cache_type: str = described(
        "Type of the values in the KV cache. Auto: the model's own type, 2 bytes, never an 8-bit type. BFloat16: 2 "
        "bytes. Fp8E4m3: 1 byte, so twice as many tokens fit, with some loss of accuracy; it needs compute capability "
        "8.9. Default: Auto.",
        default="Auto",
        enum=["Auto", "BFloat16", "Fp8E4m3"],
    )
    tool_call_parser: str = described(
        "Parser with which SGLang reads tool calls in answers (--tool-call-parser). Auto: the one that fits the "
        "model's chat template. None: no parser, so tool calls stay text. Otherwise a name that this version of SGLang "
        "has, for example hermes. Default: Auto.",
        default="Auto",
        min_length=1,
        max_length=64,
        pattern=_PARSER_NAME,
    )
    reasoning_parser: str = described(
        "Parser with which SGLang separates reasoning from the answer (--reasoning-parser). Auto: the one that fits "
        "the model's chat template. None: no parser, so reasoning stays part of the content. Otherwise a name that "
        "this version of SGLang has, for example deepseek-r1. Default: Auto.",
        default="Auto",
        min_length=1,
        max_length=64,
        pattern=_PARSER_NAME,
    )
    fast_start: bool = described(
        "Let the operator switch on the options of SGLang that make a start faster, where they are safe: the weights "
        "are read while CUDA graphs are captured (dense Qwen2 and Qwen3 models of 16 bits on one or two GPUs), or the "
        "GPUs of a pod share the reading of files on a claim. Each pod then requests more host memory, as much as the "
        "weights have. status.plan.steps says what is on. Default: false.",
        default=False,
    )
    startup_seconds: int | None = described(
        "Seconds from the start of the container until the engine answers. The kubelet restarts a container that "
        "takes more than twice as long. Default: planned, 240 s plus one second for each 10^9 bytes of weights, and "
        "ten more seconds for each 10^9 bytes if the engine downloads the model.",
        default=None,
        minimum=10,
        maximum=86400,
    )
