"""Which engine runs and with which options: image, version, arguments, environment."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from qwen_operator.api.spec import Engine, EnvVar
from qwen_operator.planning import engine_args
from qwen_operator.planning.engine_args import Option, RefusedArgsError
from qwen_operator.planning.memory import Budget
from qwen_operator.planning.types import EngineDefaults

_TAG_VERSION = re.compile(r":v?([0-9]+\.[0-9]+\.[0-9]+)[^/:@]*(@|$)")

# A crash may otherwise wait for more than a minute for dumps that nobody collects.
_ENV = (
    EnvVar("SGLANG_CUDA_COREDUMP_BEFORE_CRASH", "false"),
    EnvVar("SGLANG_PYSPY_DUMP_BEFORE_CRASH", "false"),
)
# Probes and scrapes would push everything else out of the log.
_QUIET = Option(
    "--uvicorn-access-log-exclude-prefixes",
    "--uvicorn-access-log-exclude-prefixes",
    ("/health", "/ready", "/metrics", "/v1/loads"),
)


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine before sizing: complete image reference, version, options of chart and object, warnings."""

    image: str
    version: str
    chart: tuple[Option, ...]
    own: tuple[Option, ...]
    env: tuple[EnvVar, ...]
    warnings: tuple[str, ...]


def choose(engine: Engine, defaults: EngineDefaults) -> EngineChoice:
    """The engine that an object asks for over the chart's defaults; raises RefusedArgsError."""
    image, version = _image(engine, defaults)
    warnings: tuple[str, ...] = ()
    if not engine_args.knows(version):
        warnings = (f"the options of SGLang {version} are not known to this operator, so they were not checked",)
    return EngineChoice(
        image=image,
        version=version,
        chart=engine_args.read(defaults.args, version, "the chart's engine.args"),
        own=engine_args.read(engine.args, version, "spec.engine.args"),
        env=_merged_env(_ENV, defaults.env, engine.env),
        warnings=warnings,
    )


def arguments(choice: EngineChoice, budget: Budget, context_tokens: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The argument list and the warnings about options that void the prediction."""
    planned = _planned(budget, context_tokens)
    merged = engine_args.merge(planned, choice.chart, choice.own)
    args = tuple(part for option in merged for part in option.render())
    by_name = {option.name: option for option in planned}
    warnings = []
    for where, options in (("the chart's engine.args", choice.chart), ("spec.engine.args", choice.own)):
        for option in engine_args.merge(options):
            plan = by_name.get(option.name)
            given = " ".join(option.render())
            if plan is not None and plan.values != option.values:
                warnings.append(f"{where} sets {given}, planned was {' '.join(plan.render())}: prediction void")
            elif option.name in engine_args.VOIDING:
                warnings.append(f"{where} sets {given}, which the prediction does not know: prediction void")
    return args, (*choice.warnings, *warnings)


def _planned(budget: Budget, context_tokens: int) -> tuple[Option, ...]:
    tuning = budget.tuning
    values = {
        "--tp-size": str(budget.tp),
        "--mem-fraction-static": f"{tuning.fraction / 1000:g}",
        "--context-length": str(context_tokens),
        "--chunked-prefill-size": str(tuning.chunk),
        "--cuda-graph-max-bs-decode": str(tuning.graph_batch),
        # Prefill graphs take 0.9 to 2.8 GiB that the tuned fractions do not leave, and start-up time.
        "--cuda-graph-backend-prefill": "disabled",
    }
    switches = ("--enable-metrics", "--sleep-on-idle")
    return (
        *(Option(name, name, (value,)) for name, value in values.items()),
        *(Option(name, name, ()) for name in switches),
        _QUIET,
    )


def _image(engine: Engine, defaults: EngineDefaults) -> tuple[str, str]:
    image = engine.image or defaults.image
    tagged = "@" in image or ":" in image.rpartition("/")[2]
    found = _TAG_VERSION.search(image)
    version = engine.version or (found.group(1) if found else defaults.version)
    if not tagged:
        return f"{image}:v{version}", version
    if not engine.image and engine.version not in (None, defaults.version):
        raise RefusedArgsError(
            f"spec.engine.version is {version}, but the chart fixes the image {image}: set spec.engine.image as well",
            unknown=False,
        )
    return image, version


def _merged_env(*lists: Iterable[EnvVar]) -> tuple[EnvVar, ...]:
    merged: dict[str, EnvVar] = {}
    for variables in lists:
        merged |= {variable.name: variable for variable in variables}
    return tuple(merged.values())
