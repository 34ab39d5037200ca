"""Which of the known versions of SGLang stands in for one that is not known."""

import re
from collections.abc import Iterable


def order(version: str) -> tuple[int, ...]:
    """A sort key: the numbers of a version, e.g. (0, 5, 15, 1) for 0.5.15.post1. Empty for a text without numbers."""
    return tuple(int(part) for part in re.findall("[0-9]+", version))


def nearest(version: str, known: Iterable[str]) -> str:
    """The newest known version that is not newer than `version`, or else the oldest one.

    A text without a number stands for a version that nobody knows; the newest takes its place. Raises ValueError if
    `known` is empty.
    """
    ordered = sorted(known, key=order)
    if not ordered:
        raise ValueError("no version of SGLang is known")
    wanted = order(version)
    if not wanted:
        return ordered[-1]
    return next((one for one in reversed(ordered) if order(one) <= wanted), ordered[0])
