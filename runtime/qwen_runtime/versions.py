"""Which known version of SGLang is used in place of an unknown one."""

import re
from collections.abc import Iterable


def order(version: str) -> tuple[int, ...]:
    """A sort key: the numbers of a version, e.g. (0, 5, 15, 1) for 0.5.15.post1. Empty if the text has no number."""
    return tuple(int(part) for part in re.findall("[0-9]+", version))


def nearest(version: str, candidates: Iterable[str]) -> str:
    """The newest candidate that is not newer than `version`, or else the oldest one.

    For a text without a number it is the newest. Raises ValueError if there are no `candidates`.
    """
    ordered = sorted(candidates, key=order)
    if not ordered:
        raise ValueError("no version of SGLang is known")
    wanted = order(version)
    if not wanted:
        return ordered[-1]
    return next((one for one in reversed(ordered) if order(one) <= wanted), ordered[0])
