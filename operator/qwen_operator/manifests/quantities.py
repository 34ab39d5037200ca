"""Kubernetes quantities in the form in which the API server stores them.

The server rewrites 0.5 to 500m and 1024Mi to 1Gi. A manifest with another form would always differ from the stored
object.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal
from typing import Any

_FORM = re.compile(r"^([+-]?[0-9]*(?:\.?[0-9]+))([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,2})?$")
_BINARY = ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_SUFFIXES = {power: suffix for suffix, power in _DECIMAL.items()}
_QUANTITY_MAPS = ("requests", "limits")


def canonical(value: int | str) -> str:
    """The stored form of a quantity. Text that is no quantity is returned unchanged; the server rejects it.

    Checked against kube-apiserver 1.36: binary suffixes stay binary if the number is whole, there are no fractions,
    exponents are multiples of three, and resources are rounded up to thousandths.
    """
    text = str(value)
    match = _FORM.match(text)
    if match is None:
        return text
    suffix, number = match.group(2) or "", _number(match)
    if suffix in _BINARY:
        return _binary(number)
    return _scaled(number, suffix[0] if _exponential(suffix) else "")


def amount(value: int | str) -> Decimal | None:
    """The quantity as a number: 500m is 0.5, 1Gi is 2^30. None for text that is no quantity."""
    match = _FORM.match(str(value))
    return None if match is None else _number(match)


def _number(match: re.Match[str]) -> Decimal:
    number, suffix = Decimal(match.group(1)), match.group(2) or ""
    if suffix in _BINARY:
        return number * Decimal(1024) ** (_BINARY.index(suffix) + 1)
    return number.scaleb(int(suffix[1:]) if _exponential(suffix) else _DECIMAL[suffix])


def _exponential(suffix: str) -> bool:
    """Whether it is an exponent, as in 1e3. A single E means exa."""
    return suffix[:1] in ("e", "E") and len(suffix) > 1


def shown(number: Decimal) -> str:
    """A quantity as text: a whole number if possible, with Gi or Mi if that is exact."""
    if number != number.to_integral_value():
        return f"{(number * 1000).to_integral_value()}m"
    whole = int(number)
    for suffix, power in (("Gi", 30), ("Mi", 20)):
        if whole >= 2**power and whole % 2**power == 0:
            return f"{whole >> power}{suffix}"
    return str(whole)


def canonical_quantities(node: Any) -> Any:
    """A copy of a manifest with the quantities of `requests`, `limits` and `sizeLimit` in stored form."""
    if isinstance(node, list | tuple):
        return [canonical_quantities(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    result: dict[str, Any] = {}
    for key, value in node.items():
        if key in _QUANTITY_MAPS and isinstance(value, Mapping):
            result[key] = {name: canonical(amount) for name, amount in value.items()}
        elif key == "sizeLimit" and isinstance(value, int | str):
            result[key] = canonical(value)
        else:
            result[key] = canonical_quantities(value)
    return result


def _binary(amount: Decimal) -> str:
    if amount != amount.to_integral_value() or abs(amount) < 1024:
        return _scaled(amount)
    whole, suffix = int(amount), ""
    for name in _BINARY:
        if whole % 1024:
            break
        whole, suffix = whole // 1024, name
    return f"{whole}{suffix}"


def _scaled(amount: Decimal, exponent: str = "") -> str:
    """The amount, rounded up to thousandths, as a whole number with the largest fitting power of 1000.

    `exponent` is the letter of the exponent form, or "" for suffixes such as m, k and M.
    """
    thousandths = int(amount.scaleb(3).to_integral_value(ROUND_CEILING))
    if thousandths == 0:
        return "0"
    power = -3
    while thousandths % 1000 == 0 and (exponent or power < 18):
        thousandths, power = thousandths // 1000, power + 3
    if exponent:
        return f"{thousandths}{exponent}{power}" if power else str(thousandths)
    return f"{thousandths}{_SUFFIXES[power]}"
