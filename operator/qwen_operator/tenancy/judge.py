"""Holds a spec against the platform team's lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_operator.api.reading import shown
from qwen_operator.engines.types import Option
from qwen_operator.objects import mapping
from qwen_operator.planning.engine_args import parts
from qwen_operator.tenancy import models
from qwen_operator.tenancy.lists import Setting, Tenancy
from qwen_operator.tenancy.rules import RULES, Entry, Rule, Shape, may_allow

# What a rule may raise for a value of an unexpected form. CEL fails in these cases too, which is a refusal.
_BAD_FORM = (TypeError, AttributeError, LookupError, ValueError)
_VOLUMES, _MOUNTS = ("pod", "volumes"), ("pod", "volumeMounts")


@dataclass(frozen=True, slots=True)
class Refused:
    """One entry of a spec that the lists do not allow. `setting` is the list, `right` says what would be right."""

    field: str
    value: Any
    setting: Setting
    right: str

    @property
    def message(self) -> str:
        """The field, its value, what would be right, and who may allow it."""
        return f"{self.field}: {shown(self.value)} is not allowed here: {self.right}{may_allow(self.setting)}"


@dataclass(frozen=True, slots=True)
class _Found:
    """Something that a rule judges: its place below the field, its key in a mapping, and itself.

    `option`: the option that a word belongs to, with its values, as the operator writes it into a command.
    """

    place: str
    item: Any
    key: str = ""
    option: tuple[str, ...] = ()


def refused(
    spec: Mapping[str, Any], tenancy: Tenancy, namespace: str, before: Mapping[str, Any] | None = None
) -> tuple[Refused, ...]:
    """What a spec asks for beyond the lists of its namespace.

    `spec` is as the user wrote it. `before` has the form of a spec too: its entries may stay, because an object that
    ran before the lists became stricter can still be changed.
    """
    old = before or {}
    entries = tuple(
        Refused(f"{rule.name}{found.place}", found.item, rule.setting, rule.right)
        for rule in RULES
        for found in _against(rule, spec, tenancy, namespace)
        if not _stays(rule, found, _at(old, rule.path))
    )
    return (*_refused_model(spec, old, tenancy, namespace), *_refused_adapters(spec, old, tenancy, namespace), *entries)


def _refused_model(
    spec: Mapping[str, Any], old: Mapping[str, Any], tenancy: Tenancy, namespace: str
) -> tuple[Refused, ...]:
    allowed, place = tenancy.allowed(namespace, Setting.MODELS), models.place_of(spec, tenancy.hub)
    if models.allows(allowed, place) or place == models.place_of(old, tenancy.hub):
        return ()
    return (Refused(models.field_of(spec), str(place), Setting.MODELS, models.right(allowed, place)),)


def _refused_adapters(
    spec: Mapping[str, Any], old: Mapping[str, Any], tenancy: Tenancy, namespace: str
) -> Iterator[Refused]:
    allowed, before = tenancy.allowed(namespace, Setting.MODELS), models.adapter_places(old)
    for index, place in enumerate(models.adapter_places(spec)):
        if not models.allows(allowed, place) and place not in before:
            yield Refused(f"spec.adapters[{index}]", str(place), Setting.MODELS, models.right(allowed, place))


def _against(rule: Rule, spec: Mapping[str, Any], tenancy: Tenancy, namespace: str) -> Iterator[_Found]:
    """What the rule refuses."""
    allowed = tenancy.allowed(namespace, rule.setting)
    volumes = _own_volumes(spec, tenancy, namespace) if rule.path == _MOUNTS else frozenset()
    for found in _entries(rule, _at(spec, rule.path)):
        if not _holds(rule, Entry(found.item, found.key, allowed, volumes)):
            yield found


def _own_volumes(spec: Mapping[str, Any], tenancy: Tenancy, namespace: str) -> frozenset[str]:
    """The names of the volumes that the rule allows."""
    (rule,) = [rule for rule in RULES if rule.path == _VOLUMES]
    bad = [found.item for found in _against(rule, spec, tenancy, namespace)]
    names = [item.get("name") for item in _at(spec, _VOLUMES) or () if isinstance(item, Mapping) and item not in bad]
    return frozenset(name for name in names if isinstance(name, str)) - {
        item.get("name") for item in bad if isinstance(item, Mapping) and isinstance(item.get("name"), str)
    }


def _entries(rule: Rule, value: Any) -> Iterator[_Found]:
    """Everything that the rule judges."""
    if rule.shape is Shape.FIELD:
        yield from [_Found("", value)] if value is not None else []
    elif rule.shape is Shape.MAP:
        yield from (_Found(f"[{key}]", item, str(key)) for key, item in (value or {}).items())
    elif rule.shape is Shape.LIST:
        yield from (_Found(f"[{index}]", item) for index, item in enumerate(value or ()))
    else:
        words = list(value or ())
        options = _options(words)
        yield from (_Found(f"[{index}]", word, option=options[index]) for index, word in enumerate(words))


def _options(words: Sequence[str]) -> list[tuple[str, ...]]:
    """For each word of a list of options, the option that it belongs to."""
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(word)
    return [_rendered(group) for group in groups for _ in group]


def _rendered(words: Sequence[str]) -> tuple[str, ...]:
    """One option with its values, as the operator writes it into a command."""
    spelling, values = parts(words[0])
    return Option(spelling, spelling, (*values, *words[1:])).render()


def _holds(rule: Rule, entry: Entry) -> bool:
    try:
        return rule.holds(entry)
    except _BAD_FORM:
        return False


def _stays(rule: Rule, found: _Found, old: Any) -> bool:
    """Whether the entry was there before."""
    if old is None:
        return False
    if rule.shape is Shape.FIELD:
        return bool(found.item == old)
    if rule.shape is Shape.MAP:
        return found.key in old and bool(old[found.key] == found.item)
    return found.item in old if rule.shape is Shape.LIST else found.option in _options(old)


def _at(spec: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    *outer, last = path
    return mapping(spec, *outer).get(last)
