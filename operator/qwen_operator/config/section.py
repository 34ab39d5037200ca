"""Reads settings out of nested mappings, and says what is wrong with one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen_runtime.checkpoints.reading import shown


class ConfigError(Exception):
    """A setting is wrong. The text names the setting, its value and what would be right."""


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping of settings. `path` is its name in messages, "" for the outermost one. Null counts as absent."""

    path: str
    content: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.content, Mapping):
            raise ConfigError(f"{self.path or 'the configuration'} is {shown(self.content)}: it must be a mapping")

    def raw(self, name: str) -> Any:
        """The value as it is, None if it is absent."""
        return self.content.get(name)

    def has(self, name: str) -> bool:
        """Whether the setting is present and not null."""
        return self.raw(name) is not None

    def wrong(self, name: str, right: str) -> ConfigError:
        """The error for a setting: its path, its value, and what would be right."""
        state = f"is {shown(self.raw(name))}" if self.has(name) else "is missing"
        return ConfigError(f"{self._at(name)} {state}: it must be {right}")

    def wrong_entry(self, name: str, index: int, right: str) -> ConfigError:
        """The error for one entry of a list."""
        place = f"{name}[{index}]"
        return Section(self.path, {place: self.items(name)[index]}).wrong(place, right)

    def section(self, name: str) -> Section:
        """A mapping in this one, empty if it is absent."""
        return Section(self._at(name), self.raw(name) if self.has(name) else {})

    def passthrough(self, name: str) -> Any:
        """A mapping that the operator passes on to Kubernetes unchanged, None if it is absent."""
        return self.section(name).content if self.has(name) else None

    def sections(self, name: str) -> tuple[Section, ...]:
        """A list of mappings, empty if it is absent."""
        return tuple(Section(self._at(f"{name}[{index}]"), one) for index, one in enumerate(self.items(name)))

    def items(self, name: str) -> list[Any]:
        """A list, empty if it is absent."""
        value = self.raw(name)
        if value is not None and not isinstance(value, list):
            raise self.wrong(name, "a list")
        return value or []

    def words(self, name: str) -> tuple[str, ...]:
        """A list of texts; a number counts as its digits."""
        for index, value in enumerate(self.items(name)):
            if not isinstance(value, (str, int, float)) or isinstance(value, bool):
                raise self.wrong_entry(name, index, "a text, in quotes")
        return tuple(str(value) for value in self.items(name))

    def texts(self, name: str) -> Mapping[str, str]:
        """A mapping of texts, such as labels."""
        section = self.section(name)
        return {str(key): section.text(key, "") for key in section.content}

    def text(self, name: str, default: str | None = None) -> str:
        """A text. It is required if there is no default, and it may be empty only if the default is ""."""
        value = self.raw(name) if self.has(name) else default
        if not isinstance(value, str) or (not value and default != ""):
            raise self.wrong(name, "a text, in quotes" + ("" if default == "" else " and not empty"))
        return value

    def choice(self, name: str, right: tuple[str, ...], default: str) -> str:
        """One of some texts."""
        value = self.raw(name) if self.has(name) else default
        if value not in right:
            raise self.wrong(name, " or ".join(right))
        return str(value)

    def number(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number of at least `least`. It is required if there is no default."""
        value = self.raw(name) if self.has(name) else default
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(name, f"a whole number of at least {least}")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        """True or false."""
        value = self.raw(name) if self.has(name) else default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def _at(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name
