"""Parses what namespaces may ask for: `tenancy` and `servedNames`. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qwen_operator.api.claims import ANY_NAMESPACE, NameRights
from qwen_operator.config.section import Section
from qwen_operator.planning.types import EngineDefaults
from qwen_operator.tenancy import models
from qwen_operator.tenancy.lists import PATTERNS, Mode, Setting, Tenancy

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_LONGEST_PATTERN = 96


def name_rights(content: Mapping[str, Any]) -> NameRights:
    """Which namespaces may serve which names: the setting `servedNames`. Raises ConfigError."""
    section = Section("", content).section("servedNames")
    for namespace in section.content:
        if namespace != ANY_NAMESPACE and not _NAMESPACE.fullmatch(str(namespace)):
            raise section.wrong(namespace, f"an entry for the name of a namespace, or for {ANY_NAMESPACE!r}")
        for pattern in section.items(namespace):
            if not isinstance(pattern, str) or not 0 < len(pattern) <= _LONGEST_PATTERN:
                raise section.wrong(
                    namespace, f"a list of names of 1 to {_LONGEST_PATTERN} characters, which may contain *"
                )
    return NameRights({str(namespace): tuple(section.items(namespace)) for namespace in section.content})


def tenancy(section: Section, engine: EngineDefaults) -> Tenancy:
    """The setting `tenancy`. Raises ConfigError."""
    by_namespace = section.section("namespaces")
    mode = Mode(section.choice("mode", tuple(Mode), Mode.RESTRICTED))
    return Tenancy(
        mode=mode,
        added=_lists(section, mode),
        by_namespace={name: _lists(by_namespace.section(name), mode) for name in by_namespace.content},
        exempt=frozenset(section.words("exempt")),
        engine_image=engine.image,
        hub=engine.hub,
    )


def _lists(section: Section, mode: Mode) -> Mapping[Setting, tuple[str, ...]]:
    lists = {setting: entries for setting in Setting if (entries := section.words(setting))}
    for index, entry in enumerate(lists.get(Setting.MODELS, ())):
        if mode is Mode.TRUSTED:
            raise section.wrong_entry(Setting.MODELS, index, "absent while tenancy.mode is trusted: then no list holds")
        if not models.is_entry(entry):
            raise section.wrong_entry(Setting.MODELS, index, models.FORM)
    for setting, entries in lists.items():
        star = "*" if setting in PATTERNS else ""
        if not all(entries) or any("*" in entry.removesuffix(star) for entry in entries):
            raise section.wrong(
                setting, f"a list of names{', each with at most one *, at its end' if star else ', without *'}"
            )
    return lists
