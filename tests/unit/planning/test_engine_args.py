"""SGLang's options: reading, merging, refusing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwen_operator import engines
from qwen_operator.api.engine import Engine, EnvVar
from qwen_operator.engines.types import OptionTable, Role
from qwen_operator.planning import engine
from qwen_operator.planning.engine import EngineChoice, choose
from qwen_operator.planning.engine_args import KNOWN_ALIASES, RESERVED, VOIDING, RefusedArgsError, merge, read
from qwen_operator.planning.types import EngineDefaults
from tests.unit.planning.models import DEFAULTS

VERSION = "0.5.23"
# A version in which some options have other names, one has another value, and some do not exist.
OLDER = OptionTable(
    version="0.4.99",
    options={
        "--tensor-parallel-size": "--tensor-parallel-size",
        "--tp": "--tensor-parallel-size",
        "--mem-fraction-static": "--mem-fraction-static",
        "--cuda-graph-max-bs": "--cuda-graph-max-bs",
        "--prefill-graphs": "--prefill-graphs",
        "--enable-metrics": "--enable-metrics",
        "--old-switch": "--old-switch",
    },
    planned={
        Role.TENSOR_PARALLEL: "--tensor-parallel-size",
        Role.MEMORY_FRACTION: "--mem-fraction-static",
        Role.DECODE_GRAPH_BATCH: "--cuda-graph-max-bs",
        Role.NO_PREFILL_GRAPHS: "--prefill-graphs=off",
        Role.METRICS: "--enable-metrics",
    },
)


def table(version: str) -> OptionTable:
    return engines.of(version).options


def _render(*items: str, version: str = VERSION) -> list[str]:
    return [part for option in read(items, table(version), "args") for part in option.render()]


FORMS = {
    "equals": (["--schedule-policy=lpm"], ["--schedule-policy=lpm"]),
    "one item with a space": (["--schedule-policy  lpm"], ["--schedule-policy=lpm"]),
    "two items": (["--schedule-policy", "lpm"], ["--schedule-policy=lpm"]),
    "switch": (["--disable-radix-cache"], ["--disable-radix-cache"]),
    "negative value": (["--chunked-prefill-size", "-1"], ["--chunked-prefill-size=-1"]),
    "several values": (["--cuda-graph-bs-decode", "1", "2"], ["--cuda-graph-bs-decode", "1", "2"]),
    "JSON": (['--model-loader-extra-config={"a": 1}'], ['--model-loader-extra-config={"a": 1}']),
    "JSON after a space": (['--model-loader-extra-config {"a": "b=c"}'], ['--model-loader-extra-config={"a": "b=c"}']),
    "empty value": (["--chat-template="], ["--chat-template="]),
    "alias": (["--enable-hicache"], ["--enable-hicache"]),
}


@pytest.mark.parametrize(("items", "rendered"), FORMS.values(), ids=FORMS.keys())
def test_forms(items: list[str], rendered: list[str]) -> None:
    assert _render(*items) == rendered


REFUSED = {
    "reserved": (["--host=1.2.3.4"], False, r"args\[0\]: --host cannot be set here: the operator sets the address"),
    "its alias": (["--log-level=info", "--model=x"], False, r"args\[1\]: --model .* set spec.model"),
    "tensor": (["--tensor-parallel-size 2"], False, "set spec.parallelism.tensor"),
    "key": (["--api-key", "x"], False, "the gateway checks keys"),
    "unknown": (["--no-such-flag"], True, "SGLang 0.5.23 has no option --no-such-flag$"),
    "renamed": (["--cuda-graph-max-bs=8"], True, "did you mean --cuda-graph-max-bs-decode or"),
    "abbreviated": (["--schedule"], True, "did you mean --schedule-conservativeness"),
    "no option": (["lpm"], True, r"args\[0\]: 'lpm' is not an option; it must begin with --"),
}


@pytest.mark.parametrize(("items", "unknown", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(items: list[str], unknown: bool, says: str) -> None:
    with pytest.raises(RefusedArgsError, match=says) as caught:
        _render(*items)
    assert caught.value.unknown is unknown


def test_another_version_takes_known_options_and_reserved_ones_stay_reserved() -> None:
    assert table(VERSION).options
    assert not table("9.9.9").options
    assert not table("../engine").options
    assert table("9.9.9").planned == table(VERSION).planned
    assert _render("--page-size=16", version="9.9.9") == ["--page-size=16"]
    assert read(["--from-the-future"], table("9.9.9"), "chart", trusted=True)[0].name == "--from-the-future"
    with pytest.raises(RefusedArgsError, match="has no option --from-the-future"):
        _render("--from-the-future", version="9.9.9")
    with pytest.raises(RefusedArgsError, match="--tensor-parallel-size cannot be set"):
        _render("--tensor-parallel-size=2", version="9.9.9")


def test_the_last_of_a_name_wins_whatever_its_spelling() -> None:
    known = table(VERSION)
    chart = read(["--log-level=info", "--enable-tf32-matmul", "--log-level=error"], known, "chart")
    own = read(["--no-enable-tf32-matmul", "--schedule-policy=lpm"], known, "own")
    rendered = [part for option in merge(chart, own) for part in option.render()]
    assert rendered == ["--log-level=error", "--no-enable-tf32-matmul", "--schedule-policy=lpm"]


@pytest.mark.parametrize("version", engines.VERSIONS)
def test_the_rules_name_options_as_the_table_does(version: str) -> None:
    options = table(version).options
    assert len(set(options.values())) > 500
    assert all(options[name] == name for name in (*RESERVED, *VOIDING))
    for alias, name in KNOWN_ALIASES.items():
        assert options.get(alias, name) == name


@pytest.mark.parametrize("version", engines.VERSIONS)
def test_every_role_has_an_option_that_exists(version: str) -> None:
    known = table(version)
    assert set(known.planned) == set(Role)
    assert all(known.options[known.name(role)] == known.name(role) for role in Role)


SETTINGS: engine.RoleValues = (
    (Role.TENSOR_PARALLEL, ("4",)),
    (Role.MEMORY_FRACTION, ("0.9",)),
    (Role.DECODE_GRAPH_BATCH, ("256",)),
    (Role.MAX_RUNNING_REQUESTS, ("256",)),
    *engine.FIXED,
)


def test_another_version_writes_the_same_plan_its_own_way() -> None:
    own = read(["--old-switch", "--cuda-graph-max-bs=8"], OLDER, engine.OBJECT)
    choice = EngineChoice("image", replace(engines.of(VERSION), options=OLDER), (), own, (), ())
    args, warnings = engine.arguments(choice, SETTINGS)
    assert args == (
        "--tensor-parallel-size=4",
        "--mem-fraction-static=0.9",
        "--cuda-graph-max-bs=8",
        "--prefill-graphs=off",
        "--enable-metrics",
        "--old-switch",
    )
    assert warnings == ("prediction void: spec.engine.args sets --cuda-graph-max-bs=8 (planned 256)",)
    with pytest.raises(RefusedArgsError, match=r"SGLang 0\.4\.99 has no option --cuda-graph-max-bs-decode"):
        read(["--cuda-graph-max-bs-decode=8"], OLDER, "args")
    with pytest.raises(RefusedArgsError, match=r"--tp cannot be set here: set spec\.parallelism\.tensor"):
        read(["--tp=8"], OLDER, "args")


IMAGES: dict[str, tuple[Engine, str, tuple[str, str]]] = {
    "chart": (Engine(), "lmsysorg/sglang", ("lmsysorg/sglang:v0.5.23", "0.5.23")),
    "chart with a tag": (Engine(), "localhost:5000/sglang:cpu", ("localhost:5000/sglang:cpu", "0.5.23")),
    "chart with a tag, same version": (Engine(version="0.5.23"), "a/sglang:cpu", ("a/sglang:cpu", "0.5.23")),
    "another version": (Engine(version="0.5.20"), "lmsysorg/sglang", ("lmsysorg/sglang:v0.5.20", "0.5.20")),
    "own image": (Engine(image="r:5000/sglang"), "x", ("r:5000/sglang:v0.5.23", "0.5.23")),
    "own tag says the version": (Engine(image="r/sglang:v0.5.20-cu129"), "x", ("r/sglang:v0.5.20-cu129", "0.5.20")),
    "own tag and version": (Engine(image="r/sglang:mine", version="0.5.20"), "x:1", ("r/sglang:mine", "0.5.20")),
    "digest": (Engine(image="r/sglang@sha256:ab"), "x", ("r/sglang@sha256:ab", "0.5.23")),
}


@pytest.mark.parametrize(("own", "chart", "expected"), IMAGES.values(), ids=IMAGES.keys())
def test_image_and_version(own: Engine, chart: str, expected: tuple[str, str]) -> None:
    choice = choose(own, EngineDefaults(chart, "0.5.23"))
    assert (choice.image, choice.table.version) == expected
    assert any("not checked" in warning for warning in choice.warnings) is (expected[1] != "0.5.23")


@pytest.mark.parametrize("spelling", ["--mod=x", "--trust-remote-cod", "--enable-custom-logit", "--api-k=x", "--new"])
def test_an_unknown_version_takes_only_known_options_from_an_object(spelling: str) -> None:
    chart = EngineDefaults("x", "0.5.99", args=("--new=1",))
    assert choose(Engine(args=("--page-size=16",)), chart).own[0].name == "--page-size"
    with pytest.raises(
        RefusedArgsError, match=r"spec\.engine\.args\[0\]: the operator does not know the options of SGLang"
    ):
        choose(Engine(args=(spelling,)), chart)


def test_options_and_variables_of_the_object_win_over_the_charts_over_the_plans() -> None:
    chart = replace(
        DEFAULTS,
        args=("--device=cpu", "--mem-fraction-static=0.5", "--log-level=warning"),
        env=(EnvVar("SGLANG_USE_CPU_ENGINE", "1"), EnvVar("A", "chart")),
    )
    own = Engine(
        args=("--mem-fraction-static", "0.7", "--max-running-requests=256", "--log-level=info", "--sleep-on-idle"),
        env=(EnvVar("A", "own"), EnvVar("SGLANG_PYSPY_DUMP_BEFORE_CRASH", "true")),
    )
    choice = choose(own, chart)
    args, warnings = engine.arguments(choice, SETTINGS)
    assert {"--device=cpu", "--mem-fraction-static=0.7", "--log-level=info"} <= set(args)
    assert len([item for item in args if item.startswith("--mem-fraction-static")]) == 1
    assert {one.name: one.value for one in choice.env} == {
        "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "false",
        "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "true",
        "SGLANG_USE_CPU_ENGINE": "1",
        "A": "own",
    }
    # one sentence for all; what equals the plan, changes no memory or is overruled is no reason to warn
    assert warnings == (
        "prediction void: the chart's engine.args sets --device=cpu; "
        "spec.engine.args sets --mem-fraction-static=0.7 (planned 0.9)",
    )
    assert choice.given(Role.MEMORY_FRACTION) == ("spec.engine.args", "0.7")
    assert replace(choice, own=()).given(Role.MEMORY_FRACTION) == ("the chart's engine.args", "0.5")
    assert choice.given(Role.CONTEXT_LENGTH) is None


def test_harmless_settings_may_be_replaced_in_silence() -> None:
    choice = choose(Engine(args=("--uvicorn-access-log-exclude-prefixes", "/health")), DEFAULTS)
    args, warnings = engine.arguments(choice, SETTINGS)
    assert warnings == ()
    assert "/metrics" not in args


@pytest.mark.parametrize(
    "items",
    [
        ["--cuda-graph-bs-decode --trust-remote-code", "1"],
        ["--cuda-graph-bs-decode=--host", "1"],
        ["--log-level --host"],
    ],
)
def test_no_option_hides_as_a_value(items: list[str]) -> None:
    """With a second value, each would be an argument of its own, and SGLang would read the first as an option."""
    with pytest.raises(RefusedArgsError, match="has an option as its value"):
        read(items, table(VERSION), "args")
