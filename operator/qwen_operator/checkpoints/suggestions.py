"""Which model a mistyped name may mean. A suggestion of another generation, size or kind says what differs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches

from qwen_operator.checkpoints import catalog

_CUTOFF = 0.8
_CANDIDATES = 10
# The names of the families, with a number that may follow without a space: Qwen2.5, qwen-2.5, QwQ.
_FAMILY = re.compile(r"(codeqwen|qwen|qwq|qvq)[-_ ]?(\d(?:[._]?\d)?(?![\d.]*[bm]\b))?")
_SIZE = re.compile(r"a?\d+(?:\.\d+)?[bm]")


@dataclass(frozen=True, slots=True)
class _Name:
    """The parts of a model's name that a person means by it: family, generation, sizes, other words."""

    family: str
    generation: str
    sizes: frozenset[str]
    words: frozenset[str]


def suggestion(name: str) -> str:
    """The end of a sentence that names the most similar model of the catalog, "" if none is similar.

    "did you mean" is only for another spelling. Case and a missing organisation do not matter.
    """
    spelled = {one.casefold(): one for one in catalog.names()}
    spelled |= {one.rpartition("/")[2].casefold(): one for one in catalog.names()}
    near = get_close_matches(name.casefold(), spelled, n=_CANDIDATES, cutoff=_CUTOFF)
    if not near:
        return ""
    # Of equally different ones the first, which is the most similar.
    best = min((spelled[one] for one in near), key=lambda one: _distance(name, one))
    differing = differences(name, best)
    if not differing:
        return f"; did you mean {best}?"
    return f"; the most similar model there is {best}, but it is another one: {', '.join(differing)}"


def _distance(asked: str, known: str) -> tuple[bool, bool, int, int]:
    """Another generation is further away than another size, that than a word left out, and that than one more."""
    one, two = _parsed(asked), _parsed(known)
    another = bool(_other("", one.family, two.family) or _other("", one.generation, two.generation))
    return another, one.sizes != two.sizes, len(_left(one.words, two.words)), len(_left(two.words, one.words))


def differences(asked: str, known: str) -> tuple[str, ...]:
    """What distinguishes two names beyond their spelling, each in a few words."""
    one, two = _parsed(asked), _parsed(known)
    return (
        *_other("family", one.family, two.family),
        *_other("generation", one.generation, two.generation),
        *_other("size", "-".join(sorted(one.sizes)), "-".join(sorted(two.sizes))),
        *(f"without {word}" for word in sorted(_left(one.words, two.words))),
        *(f"with {word}" for word in sorted(_left(two.words, one.words))),
    )


def _other(part: str, asked: str, known: str) -> tuple[str, ...]:
    # A dot in a number is often forgotten: qwen15-7b.
    if asked.replace(".", "") == known.replace(".", ""):
        return ()
    return (f"{part} {known or 'none'} instead of {asked or 'none'}",)


def _left(words: frozenset[str], others: frozenset[str]) -> frozenset[str]:
    """The words without a counterpart that is spelled alike. Numbers are never alike."""
    return frozenset(word for word in words if not any(_alike(word, other) for other in others))


def _alike(one: str, two: str) -> bool:
    if any(letter.isdigit() for letter in one + two):
        return one == two
    return SequenceMatcher(None, one, two).ratio() >= _CUTOFF or sorted(one) == sorted(two)


def _parsed(name: str) -> _Name:
    text = name.rpartition("/")[2].casefold()
    match = _FAMILY.search(text)
    family, generation = (match[1], (match[2] or "").replace("_", ".")) if match else ("", "")
    rest = re.split(r"[-_ ]+", text[: match.start()] + "-" + text[match.end() :] if match else text)
    sizes = frozenset(part for part in rest if _SIZE.fullmatch(part))
    return _Name(family, generation, sizes, frozenset(rest) - sizes - {""})
