"""SGLang's options: reading, merging, refusing."""

from __future__ import annotations

import pytest

from qwen_operator.planning import engine_args
from qwen_operator.planning.engine_args import RESERVED, VOIDING, RefusedArgsError, knows, merge, read

VERSION = "0.5.23"


def _render(*items: str, version: str = VERSION) -> list[str]:
    return [part for option in read(items, version, "args") for part in option.render()]


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
    "key": (["--api-key", "x"], False, "checked by the gateway"),
    "unknown": (["--no-such-flag"], True, "SGLang 0.5.23 has no option --no-such-flag$"),
    "renamed": (["--cuda-graph-max-bs=8"], True, "did you mean --cuda-graph-max-bs-decode or"),
    "abbreviated": (["--schedule"], True, "did you mean --schedule-conservativeness"),
    "no option": (["lpm"], True, r"args\[0\]: 'lpm' is no option; it must begin with --"),
}


@pytest.mark.parametrize(("items", "unknown", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(items: list[str], unknown: bool, says: str) -> None:
    with pytest.raises(RefusedArgsError, match=says) as caught:
        _render(*items)
    assert caught.value.unknown is unknown


def test_another_version_is_not_checked_but_reserved_options_stay_reserved() -> None:
    assert knows(VERSION)
    assert not knows("9.9.9")
    assert not knows("../engine")
    assert _render("--from-the-future", version="9.9.9") == ["--from-the-future"]
    with pytest.raises(RefusedArgsError, match="--tensor-parallel-size cannot be set"):
        _render("--tensor-parallel-size=2", version="9.9.9")


def test_the_last_of_a_name_wins_whatever_its_spelling() -> None:
    chart = read(["--log-level=info", "--enable-tf32-matmul", "--log-level=error"], VERSION, "chart")
    own = read(["--no-enable-tf32-matmul", "--schedule-policy=lpm"], VERSION, "own")
    rendered = [part for option in merge(chart, own) for part in option.render()]
    assert rendered == ["--log-level=error", "--no-enable-tf32-matmul", "--schedule-policy=lpm"]


def test_the_rules_name_options_as_the_table_does() -> None:
    table = engine_args._table(VERSION)
    assert len(set(table.values())) > 500
    assert all(table[name] == name for name in (*RESERVED, *VOIDING))
    for alias, name in engine_args._KNOWN_ALIASES.items():
        assert table.get(alias, name) == name
