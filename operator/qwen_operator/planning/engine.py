"""The engine of a plan and its options: image, version, arguments, environment."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from qwen_operator import engines, untrusted
from qwen_operator.api.engine import Engine, EnvVar
from qwen_operator.engines.types import EngineVersion, Option, OptionTable, Role
from qwen_operator.planning import engine_args
from qwen_operator.planning.answers import STRICT_TOOLS
from qwen_operator.planning.engine_args import RefusedArgsError
from qwen_operator.planning.types import CacheType, EngineDefaults, EngineSource

_TAG_VERSION = re.compile(r":v?([0-9]+\.[0-9]+\.[0-9]+)[^/:@]*(@|$)")
VOID = "prediction void: "
"""How the warning begins that names the options which make the prediction wrong."""
_LARGEST_LIMIT = 10**15
CHART, OBJECT = "the chart's engine.args", "spec.engine.args"

# Without these, a crash may wait more than a minute for dumps that nobody collects.
_ENV = (
    EnvVar("SGLANG_CUDA_COREDUMP_BEFORE_CRASH", "false"),
    EnvVar("SGLANG_PYSPY_DUMP_BEFORE_CRASH", "false"),
)
# Otherwise probes and scrapes fill the log.
_QUIET_PATHS = ("/health", "/ready", "/metrics", "/v1/loads")
# A plan sets these for behaviour, not for memory. Another value does not make the prediction wrong.
_HARMLESS = frozenset(
    {
        Role.TOOL_CALL_PARSER,
        Role.REASONING_PARSER,
        Role.METRICS,
        Role.SLEEP_ON_IDLE,
        Role.QUIET_PATHS,
        Role.MEDIA_DOMAINS,
        Role.GROUP_TIMEOUT,
        Role.OVERLAP_WEIGHTS,
        Role.PREFETCH_WEIGHTS,
    }
)

RoleValues = tuple[tuple[Role, tuple[str, ...]], ...]
"""The settings of a plan with their values, in the order of the command line."""

FIXED: RoleValues = (
    # Prefill graphs take 0.9 to 2.8 GiB that the tuned fractions do not leave, and start-up time.
    (Role.NO_PREFILL_GRAPHS, ()),
    (Role.METRICS, ()),
    (Role.SLEEP_ON_IDLE, ()),
    (Role.QUIET_PATHS, _QUIET_PATHS),
)
"""The settings that are the same in every plan."""


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine before sizing: complete image reference, its version, options of chart and object, and warnings.

    `revision` is the revision to download. If `downloads` is true, every start loads the weights from a hub.
    `on_claim`: the files are on a PersistentVolumeClaim. `adapters`: names and folders of adapters in the container.
    """

    image: str
    engine: EngineVersion
    chart: tuple[Option, ...]
    own: tuple[Option, ...]
    env: tuple[EnvVar, ...]
    warnings: tuple[str, ...]
    revision: str | None = None
    downloads: bool = False
    on_claim: bool = False
    adapters: tuple[tuple[str, str], ...] = ()

    def environment(self, tools: str | None) -> tuple[EnvVar, ...]:
        """The variables of the engine. With a parser of tool calls there is one more, unless the user sets it."""
        parsed = tools is not None or self.given(Role.TOOL_CALL_PARSER) is not None
        own = any(variable.name == STRICT_TOOLS.name for variable in self.env)
        return (*self.env, STRICT_TOOLS) if parsed and not own else self.env

    @property
    def table(self) -> OptionTable:
        """The options of this version."""
        return self.engine.options

    def given(self, role: Role) -> tuple[str, str] | None:
        """(where, value) of the object's or the chart's option for `role`, which replaces the planned one, or None."""
        name = self.table.name(role)
        for where, options in ((OBJECT, self.own), (CHART, self.chart)):
            for option in reversed(options):
                if option.name == name:
                    return where, " ".join(option.values)
        return None


def choose(engine: Engine, defaults: EngineDefaults, source: EngineSource | None = None) -> EngineChoice:
    """The engine by the object's settings, else the chart's defaults. Raises RefusedArgsError."""
    image, version = _image(engine, defaults)
    engine_version = engines.of(version)
    table = engine_version.options
    warnings: tuple[str, ...] = ()
    if not table.options:
        warnings = (
            f"the options of SGLang {version} are not known to this operator, so those of the chart were not checked",
        )
    return EngineChoice(
        image=image,
        engine=engine_version,
        chart=engine_args.read(defaults.args, table, CHART, trusted=True),
        own=engine_args.read(engine.args, table, OBJECT),
        env=_merged_env(_ENV, source.env if source else (), defaults.env, engine.env),
        warnings=warnings,
        revision=source.revision if source else None,
        downloads=source is not None and source.downloads,
        on_claim=source is not None and _on_claim(source),
        adapters=source.adapters if source else (),
    )


def _on_claim(source: EngineSource) -> bool:
    if source.fetch is not None:
        return source.fetch.cache.type is CacheType.CLAIM
    return any("persistentVolumeClaim" in volume for volume in source.volumes)


def arguments(choice: EngineChoice, settings: RoleValues) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The argument list and the warnings. One warning names all options that make the prediction wrong."""
    roles = {choice.table.name(role): role for role, _ in settings}
    planned = [option for role, values in settings if (option := choice.table.option(role, *values))]
    merged = engine_args.merge(planned, choice.chart, choice.own)
    args = tuple(part for option in merged for part in option.render())
    by_name = {option.name: option for option in planned}
    own = engine_args.merge(choice.own)
    overruled = {option.name for option in own}
    chart = [option for option in engine_args.merge(choice.chart) if option.name not in overruled]
    voiding: dict[str, list[str]] = {}
    for where, options in ((CHART, chart), (OBJECT, own)):
        for option in options:
            plan = by_name.get(option.name)
            given = " ".join(option.render())
            if plan is not None and roles[option.name] not in _HARMLESS and plan.values != option.values:
                voiding.setdefault(where, []).append(f"{given} (planned {' '.join(plan.values)})")
            elif plan is None and option.name in engine_args.VOIDING:
                voiding.setdefault(where, []).append(given)
    if not voiding:
        return args, choice.warnings
    void_options = "; ".join(f"{where} sets {', '.join(options)}" for where, options in voiding.items())
    return args, (*choice.warnings, f"{VOID}{void_options}")


def promised_tokens(
    choice: EngineChoice, settings: RoleValues, kv_tokens: int, warnings: tuple[str, ...]
) -> int | None:
    """`Plan.promised_tokens`. `settings` and `warnings` are those of the plan."""
    promised = _promised(choice, settings, kv_tokens)
    void = any(warning.startswith(VOID) for warning in warnings)
    return None if promised == (0 if void else kv_tokens) else promised


def _promised(choice: EngineChoice, settings: RoleValues, kv_tokens: int) -> int:
    """How many of the planned tokens an engine has at least, with the chart's options; 0 if they make that unknown.

    The chart's limit on tokens is a known number, also on another device and for other numbers of requests. The options
    of an object do not count: what they take away is told.
    """
    chart = {option.name: option.values for option in engine_args.merge(choice.chart)}
    planned = {
        option.name: option.values
        for role, values in settings
        if role not in _HARMLESS and (option := choice.table.option(role, *values))
    }
    other = {name for name in planned.keys() & chart.keys() if planned[name] != chart[name]}
    other |= engine_args.VOIDING & (chart.keys() - planned.keys())
    limit_name = choice.table.name(Role.MOST_TOKENS)
    limit = untrusted.digits(" ".join(chart.get(limit_name, ())), _LARGEST_LIMIT, 0)
    if limit:
        other -= {limit_name, "--device", choice.table.name(Role.MAX_RUNNING_REQUESTS)}
    return 0 if other else min(kv_tokens, limit or kv_tokens)


def _image(engine: Engine, defaults: EngineDefaults) -> tuple[str, str]:
    image = engine.image or defaults.image
    tagged = "@" in image or ":" in image.rpartition("/")[2]
    tag_version = _TAG_VERSION.search(image)
    version = engine.version or (tag_version.group(1) if tag_version else defaults.version)
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
