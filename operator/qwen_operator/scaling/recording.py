"""Looks of the scaling loop as lines of JSON, and back. Pure.

A line has all that the loop knew at one look at one deployment, and what it decided. So the same code makes the same
decisions from it again (`qwen-operator replay`). The form follows from the types: a value is an object of its fields,
without those that have their default. A field that a later version adds is in the lines without a change here, and an
earlier version ignores it. Lines come from files of anybody: what is not of the right type is a ValueError.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from enum import Enum
from functools import cache
from typing import Any

from qwen_operator.api.conditions import Reason
from qwen_operator.scaling.demand import Look, ModelDemand
from qwen_operator.scaling.page import Reading
from qwen_operator.scaling.types import ScaledDeployment, ScalingState
from qwen_operator.untrusted import clean, count, decode

LINE_BYTES = 1024 * 1024
"""The longest line. One of a deployment with 100 replicas has about 40 KB."""
LARGEST_NUMBER = 1e18
"""Larger than any sum over the series of a page."""
_LEVELS = 8
_NOTHING_ASKED = Look(ModelDemand(), complete=False, silent=True)


@dataclass(frozen=True, slots=True)
class Looked:
    """One look at one deployment.

    `at`: its monotonic second. `readings`: what each ready engine showed, or why it could not be read, by uid.
    `demand`: what the gateway showed. `state`: what the loop decided. `run`: the operator process that led at that
    time. `number`: 1 for its first look at this deployment. `time`: seconds since 1970.
    """

    deployment: ScaledDeployment
    at: float
    state: ScalingState
    readings: Mapping[str, Reading | Reason] = field(default_factory=dict)
    demand: Look = _NOTHING_ASKED
    run: str = ""
    number: int = 0
    time: float = 0.0


def line(looked: Looked) -> str:
    """The look as one line of JSON, without addresses of pods. Raises ValueError for a number that JSON cannot have."""
    deployment = looked.deployment
    engines = tuple(replace(engine, address="") for engine in deployment.engines)
    shown = deployment.shown and _decision(deployment.shown)
    looked = replace(
        looked, deployment=replace(deployment, engines=engines, shown=shown), state=_decision(looked.state)
    )
    return json.dumps(_plain(looked), allow_nan=False, separators=(",", ":"))


def looked_of(text: str | bytes) -> Looked:
    """The look of a line. Raises ValueError, which says what is wrong with it."""
    if len(text) > LINE_BYTES:
        raise ValueError(f"it has more than {LINE_BYTES} bytes, which no look has")
    try:
        value = decode(text, _LEVELS)
    except ValueError:
        raise ValueError("it is not JSON") from None
    looked: Looked = _dataclass(Looked, value, "")
    bounds = looked.deployment.bounds
    if bounds is not None and not bounds.least <= bounds.most:
        raise ValueError(f"deployment.bounds.least is {bounds.least}: it must be at most deployment.bounds.most")
    return looked


def _decision(state: ScalingState) -> ScalingState:
    """Without what follows from the readings and decides no size."""
    return replace(state, removal_order=(), idle=frozenset(), unfinished={})


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        known = {one.name: getattr(value, one.name) for one in fields(value)}
        return {one.name: _plain(known[one.name]) for one in fields(value) if known[one.name] != _default(one)}
    if isinstance(value, Mapping):
        return {str(key): _plain(member) for key, member in value.items()}
    if isinstance(value, frozenset):
        return sorted(_plain(member) for member in value)
    if isinstance(value, tuple | list):
        return [_plain(member) for member in value]
    return value


def _default(one: Field[Any]) -> Any:
    if one.default_factory is not MISSING:
        return one.default_factory()
    return one.default


@cache
def _types(kind: Any) -> Mapping[str, Any]:
    return typing.get_type_hints(kind)


def _dataclass(kind: Any, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(path, value, "an object")
    content = {}
    for one in fields(kind):
        at = f"{path}.{one.name}" if path else one.name
        if one.name in value:
            content[one.name] = _value(_types(kind)[one.name], value[one.name], at)
        elif one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"{at} is missing")
    return kind(**content)


def _value(kind: Any, value: Any, path: str) -> Any:
    """The value as `kind`, which may be a number, a text, an enum, a dataclass, a collection of them or a union."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _one_of(arguments, value, path)
    if origin is not None:
        return _collection(origin, arguments, value, path)
    if is_dataclass(kind):
        return _dataclass(kind, value, path)
    if issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError:
            raise _wrong(path, value, f"a {kind.__name__} that this version knows") from None
    if not _SCALARS[kind](value):
        raise _wrong(path, value, _NAMES[kind])
    return kind(value)


def _one_of(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    """The first kind whose form in JSON is that of the value: null, an object, or the other one."""
    if value is None and type(None) in kinds:
        return None
    rest = [kind for kind in kinds if kind is not type(None)]
    objects = [kind for kind in rest if is_dataclass(kind)]
    others = [kind for kind in rest if not is_dataclass(kind)]
    chosen = objects if isinstance(value, dict) and objects else others or objects
    return _value(chosen[0], value, path)


def _collection(origin: Any, kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise _wrong(path, value, "an object")
        return {key: _value(kinds[1], member, f"{path}.{clean(key, 60)}") for key, member in value.items()}
    if not isinstance(value, list):
        raise _wrong(path, value, "a list")
    if origin is tuple and kinds[-1] is not Ellipsis:
        if len(value) != len(kinds):
            raise _wrong(path, value, f"a list of {len(kinds)} entries")
        pairs = zip(kinds, value, strict=True)
        return tuple(_value(kind, member, f"{path}[{index}]") for index, (kind, member) in enumerate(pairs))
    return origin(_value(kinds[0], member, f"{path}[{index}]") for index, member in enumerate(value))


def _wrong(path: str, value: Any, right: str) -> ValueError:
    where = path or "the line"
    return ValueError(f"{where} is {clean(value, 60) or repr(value)}: it must be {right}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and count(value, LARGEST_NUMBER)


_SCALARS: Mapping[type, Callable[[Any], bool]] = {
    bool: lambda value: isinstance(value, bool),
    int: lambda value: isinstance(value, int) and _is_number(value),
    float: _is_number,
    str: lambda value: isinstance(value, str),
}
_NAMES = {bool: "true or false", int: "a whole number of at least 0", float: "a number of at least 0", str: "a text"}
