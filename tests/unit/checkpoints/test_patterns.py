"""Regular expressions from files: they mean what they mean to Python, and never take long."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from qwen_runtime.checkpoints.patterns import LONGEST, Pattern, UnsafePatternError

NAMES = [
    f"model.layers.{layer}.{name}"
    for layer in (0, 1, 5, 10, 19, 27, 79)
    for name in ("self_attn.q_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.experts.12.gate_proj", "mlp.gate")
]


def matches(text: str, name: str) -> bool:
    pattern = Pattern(text)
    return pattern.matches(pattern.state(pattern.start, name))


@pytest.mark.parametrize(
    "text",
    [
        r".*\.(?:[1-9]|1[0-9]|2[0-7])\..*",
        r"^(?!.*layers\.(0|1)\.).*$",
        r".*mlp\.gate$",
        r"model.layers.[0-5]\..*q_proj",
        r".*\d{2}.*",
        r"(?:.*gate|.*q_proj)$",
        r".*[^0-9]1\.",
        r"^model\.layers\.(1|10)(\.|$)",
        r".+?attn",
        r"(a|a)*b",
        r"x{0,3}model",
        r"model(?=\.layers\.5\.)",
        r"(?P<n>model)\.l",
        r"",
        r"\w+\.\w+\.1\d",
        r"m{1}odel",
        r"[\w.]+_proj\Z",
        r"\Amodel[.]layers[.][^.]+[.]mlp(?:$|[.])",
        r"mo{1,}del",
        r"m{o",
        r"(?:mod)?(?:el)*\.",
        r"model\.layers\.[]0]",
    ],
)
def test_a_pattern_matches_what_python_matches(text: str) -> None:
    assert [matches(text, name) for name in NAMES] == [bool(re.match(text, name)) for name in NAMES]


pieces = st.sampled_from(
    ["a", "b", ".", "[ab]", "[^a]", r"\.", "(a|b)", "(?:ab|b)", "(a|ab)(c|bcd)", "(?!a)", "(?=b)", "$", "(?:a$)?"]
).flatmap(lambda piece: st.sampled_from(["", "*", "+", "?", "{1,2}"]).map(lambda repeat: piece + repeat))


@settings(max_examples=300, deadline=None)
@given(st.lists(pieces, max_size=5), st.booleans(), st.text("abc.d", max_size=7))
@example(["(a|ab)(c|bcd)", "d*"], True, "abcd")
def test_any_pattern_matches_what_python_matches(parts: list[str], split: bool, text: str) -> None:
    pattern = ("|" if split else "").join(parts)
    try:
        expected = bool(re.match(pattern, text))
        matched = matches(pattern, text)
    except (re.error, UnsafePatternError):
        assume(False)
    assert matched == expected


@pytest.mark.parametrize(
    "text",
    [
        "(a|a)*" * 40 + "b",
        "(.*a){20}b",
        "(.*.*.*.*)*x",
        "((a*)*)*b",
        "(?:a?){200}a{50}",
        "(a|b|ab)*" * 20 + "z",
        "[ab]*a[ab]{60}",
        "(?=(?:.*a){20})(?=(?:.*b){20})x*",
        "(" * 5000,
        "a" * LONGEST,
        "(a{99}){99}",
        "|" * LONGEST,
    ],
)
def test_a_hostile_pattern_takes_no_time(text: str) -> None:
    started = time.process_time()
    try:
        pattern = Pattern(text)
        for index in range(20):
            pattern.state(pattern.start, ("ab" * 30)[index:] + "a" * 30)
    except UnsafePatternError:
        pass
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (r"(a)\1", r"uses \1"),
        (r"a\b", r"uses \b"),
        ("(?<=a)b", "uses (?<"),
        ("(?i)a", "uses (?i"),
        ("(?>a)", "uses (?>"),
        ("a*+", "uses a possessive repeat"),
        ("(a", "has a ( without a )"),
        ("a)", "has a ) without a ("),
        ("*a", "repeats nothing with *"),
        ("a\\", "ends too early"),
        ("[a", "ends too early"),
        ("a{9,2}", "repeats from 9 to 2"),
        ("a^b", "uses ^ after other characters"),
        ("(?:^a)*", "repeats an anchor"),
        ("a" * (LONGEST + 1), "characters, it must"),
        ("a" * 300, "characters in a row"),
        ("(" * 40 + ")" * 40, "is nested too deeply"),
        ("(a{99}){99}", "has more than 250 characters in a row"),
        ("a**", "repeats a repeat"),
        ("(?!a)" * 9, "looks ahead too often"),
        (r"[\w-a]", "range between classes"),
    ],
)
def test_what_is_not_matched_is_named(text: str, says: str) -> None:
    with pytest.raises(UnsafePatternError) as refused:
        Pattern(text)
    assert says in str(refused.value)
