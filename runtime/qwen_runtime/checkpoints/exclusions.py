"""Which linear layers the lists and rules of a quantization name: by text, by path, or by regular expression.

A file may name every expert of a model (40 000 names), or hold rules made to take hours. Names and rules are therefore
bounded, sorted by layer first, and compared once per distinct set of names, not once per layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import Enum

from qwen_runtime.checkpoints.modules import Modules
from qwen_runtime.checkpoints.patterns import Pattern, UnsafePatternError
from qwen_runtime.checkpoints.reading import Fields, InvalidFactsError, shown

MOST_RULES = 4096
_LONGEST_NAME = 512
_MOST_NAMES = 200_000
_MOST_EVERYWHERE = 512
# Steps of the automata, each of them about 60 ns, and what other comparisons cost in steps.
_MOST_STEPS = 15_000_000
_LISTED_STEPS = 50
_NAME_STEPS = 12

_IN_LAYER = re.compile(r"^(?:.*\.)?layers\.(\d{1,4})(?:\.(.*))?$")
_COMPONENT = re.compile(r"\.?[^.]+")
Hits = Callable[[int], frozenset[str]]
"""The names within a layer that a list or a rule matches, by the layer's number."""


class Match(Enum):
    """How an entry of a list is compared with the name of a layer."""

    TEXT = "anywhere in the name"
    PATH = "whole components of the path"
    END = "the end of the path"


def names_in(fields: Fields, field: str) -> list[str]:
    """A list of names, some of which may be `re:REGEX`; none where the field is absent or null."""
    names = fields.values.get(field) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise fields.refuse(field, "a list of module names")
    plain = [name for name in names if not name.startswith("re:")]
    if len(plain) > _MOST_NAMES or len(names) - len(plain) > MOST_RULES:
        raise fields.refuse(field, f"at most {_MOST_NAMES} module names and {MOST_RULES} regular expressions")
    if any(len(name) > _LONGEST_NAME for name in plain):
        raise fields.refuse(field, f"a list of module names of at most {_LONGEST_NAME} characters")
    return names


class Exceptions:
    """The lists and rules of one file, compared with the names of one model."""

    def __init__(self, modules: Modules, prefix: str) -> None:
        """`prefix` stands before field names in messages, as in `quantization_config.`."""
        self.modules, self.names, self._prefix = modules, modules.names(), prefix
        # The automaton walks whole components: thousands of experts differ in one of them.
        self.parts = {name: tuple(_COMPONENT.findall(name)) for name in self.names}
        self._left = _MOST_STEPS

    def spend(self, steps: int) -> None:
        """Raises InvalidFactsError once comparing has taken about a second."""
        self._left -= steps
        if self._left < 0:
            raise InvalidFactsError(
                f"{self._prefix[:-1]} has more exceptions than can be compared with {self.modules.layers} layers"
            )

    def listed(self, names: Iterable[str], match: Match, field: str) -> Hits:
        """Matches of a list of names; raises InvalidFactsError, which names `field`."""
        listed = _Listed(self, match)
        for name in names:
            listed.add(name)
        if len(listed.everywhere) > _MOST_EVERYWHERE:
            raise InvalidFactsError(
                f"{self._prefix}{field} has {len(listed.everywhere)} names without a layer, it must have at most "
                f"{_MOST_EVERYWHERE}"
            )
        return listed.hits

    def rule(self, text: str, field: str) -> Hits:
        """Matches of one expression, as `re.match`; raises InvalidFactsError, also later, with the expression."""
        try:
            return _Expression(self, Pattern(text), text, f"{self._prefix}{field}").hits
        except UnsafePatternError as error:
            raise refusal(f"{self._prefix}{field}", text, error) from None


def refusal(field: str, text: str, error: UnsafePatternError) -> InvalidFactsError:
    """The error for an expression that is not matched."""
    return InvalidFactsError(
        f"{field} has the regular expression {shown(text)}, which {error}; it must be one that can be checked in "
        "bounded time"
    )


class _Listed:
    def __init__(self, owner: Exceptions, match: Match) -> None:
        self._owner, self._match = owner, match
        self._by_layer: dict[int, set[str]] = {}
        self.everywhere: set[str] = set()
        self._common: frozenset[str] | None = None
        self._known: dict[frozenset[str], frozenset[str]] = {}

    def add(self, name: str) -> None:
        match = _IN_LAYER.match(name.strip(".") if self._match is Match.PATH else name)
        if match is None:
            if name.strip("."):
                self.everywhere.add(name)
            return
        number, rest = match[1], match[2]
        self._by_layer.setdefault(int(number), set()).add(rest or "")
        if self._match is Match.TEXT and rest is None:
            # "layers.1" is a part of "layers.10" as well, for AutoAWQ and for SGLang.
            for layer in range(self._owner.modules.layers):
                if str(layer).startswith(number):
                    self._by_layer.setdefault(layer, set()).add("")

    def hits(self, layer: int) -> frozenset[str]:
        rests = frozenset(self._by_layer.get(layer, ()))
        if rests not in self._known:
            self._owner.spend(len(self._owner.names) * _LISTED_STEPS)
            self._known[rests] = frozenset(name for name in self._owner.names if self._in_layer(rests, name))
        return self._known[rests] | self._anywhere() | self._across(layer)

    def _in_layer(self, rests: frozenset[str], name: str) -> bool:
        if self._match is Match.END:
            return name in rests
        if self._match is Match.TEXT:
            return any(name[:end] in rests for end in range(len(name) + 1))
        ends = [index for index, character in enumerate(f"{name}.") if character == "."]
        return "" in rests or any(name[:end] in rests for end in ends)

    def _anywhere(self) -> frozenset[str]:
        if self._common is None:
            self._owner.spend(len(self._owner.names) * len(self.everywhere))
            self._common = frozenset(
                name for name in self._owner.names if any(self._matches(one, name) for one in self.everywhere)
            )
        return self._common

    def _matches(self, one: str, name: str) -> bool:
        if self._match is Match.TEXT:
            return one in name or one in "model.layers."
        one = one.strip(".")
        if self._match is Match.END:
            return f".{name}".endswith(f".{one}")
        return f".{one}." in f".model.layers.0.{name}."

    def _across(self, layer: int) -> frozenset[str]:
        """Matches of text that reaches from the number of the layer into the name; others cannot reach across it."""
        if self._match is not Match.TEXT:
            return frozenset()
        reaching = [one for one in self.everywhere if one[0] == "." or any(map(str.isdigit, one))]
        if not reaching:
            return frozenset()
        self._owner.spend(len(self._owner.names) * len(reaching))
        at = f"model.layers.{layer}."
        return frozenset(name for name in self._owner.names if any(one in at + name for one in reaching))


class _Expression:
    def __init__(self, owner: Exceptions, pattern: Pattern, text: str, field: str) -> None:
        self._owner, self._pattern, self._text, self._field = owner, pattern, text, field
        self._jumps: dict[tuple[int, str], int] = {}
        self._known: dict[int, frozenset[str]] = {
            pattern.dead: frozenset(), pattern.accepted: frozenset(owner.names)
        }  # fmt: skip

    def hits(self, layer: int) -> frozenset[str]:
        names: frozenset[str] = frozenset()
        try:
            for prefix in self._owner.modules.prefixes:
                names |= self._after(f"{prefix}{layer}.")
        except UnsafePatternError as error:
            raise refusal(self._field, self._text, error) from None
        return names

    def _after(self, prefix: str) -> frozenset[str]:
        """The names that the expression matches after a prefix; they depend only on the state after it."""
        self._owner.spend(len(prefix))
        pattern = self._pattern
        state = pattern.state(pattern.start, prefix)
        if state not in self._known:
            parts = self._owner.parts
            self._owner.spend(_NAME_STEPS * len(parts))
            self._known[state] = frozenset(name for name, path in parts.items() if self._accepts(state, path))
        return self._known[state]

    def _accepts(self, state: int, path: tuple[str, ...]) -> bool:
        for part in path:
            following = self._jumps.get((state, part))
            if following is None:
                following = self._jumps[state, part] = self._pattern.state(state, part)
            state = following
        return self._pattern.matches(state)
