"""Regular expressions from foreign files, matched in bounded time.

Python's own matcher backtracks: `(a|a)*b` in a config.json would stop the operator for hours. Here an expression
becomes an automaton, one state at a time (Brzozowski, Derivatives of Regular Expressions, 1964), so every character of
a name costs one step. Number and size of the states are bounded. What an automaton cannot express (backreferences,
looking back, word boundaries, flags) is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

LONGEST = 4096
_MOST_STATES = 2000
_MOST_WORK = 200_000
# Bounds of an expression whose repeats are written out: characters in a row (names are shorter), and in all.
_LONGEST_ROW = 250
_MOST_CHARACTERS = 8192
_DEEPEST = 25
_ALPHABET = frozenset(map(chr, range(32, 127)))
_CLASSES = {
    "d": frozenset("0123456789"),
    "w": frozenset(character for character in _ALPHABET if character.isalnum() or character == "_"),
    "s": frozenset(" "),
}
_CLASSES |= {name.upper(): _ALPHABET - members for name, members in _CLASSES.items()}
_REPEAT = re.compile(r"\{(\d{0,4})(,?)(\d{0,4})\}")
_NAMED_GROUP = re.compile(r"\?P<\w+>")

# A term is a tuple: its kind, then its parts. Equal languages get equal terms as far as the constructors below see it.
_Term = tuple[Any, ...]
_NOTHING: _Term = ("none",)
_EMPTY: _Term = ("empty",)
_ALL: _Term = ("star", ("one", _ALPHABET))


class UnsafePatternError(ValueError):
    """An expression that is not matched; the text ends the sentence "REGEX ...", for example "uses \\b"."""


class Pattern:
    """One expression. `state` walks through a text and `matches` tells whether `re.match` would accept it."""

    def __init__(self, text: str) -> None:
        """Raises UnsafePatternError."""
        if len(text) > LONGEST:
            raise UnsafePatternError(f"has {len(text)} characters, it must have at most {LONGEST}")
        self._work = 0
        self._numbers: dict[_Term, int] = {}
        self._terms: list[_Term] = []
        self._final: list[bool] = []
        self._next: list[dict[str, int]] = []
        tree = _Parser(text).parse()
        _measured(tree)
        self.dead = self._number(_NOTHING)
        self.accepted = self._number(_ALL)
        self.start = self._number(_build(tree, _ALL, at_start=True))

    def state(self, start: int, text: str) -> int:
        """The state after `text`; `dead` and `accepted` are final."""
        state = start
        for character in text:
            if state <= 1:
                return state
            following = self._next[state].get(character)
            state = self._step(state, character) if following is None else following
        return state

    def matches(self, state: int) -> bool:
        """Whether a text that ends in this state is accepted."""
        return self._final[state]

    def _step(self, state: int, character: str) -> int:
        following = self._number(self._derive(self._terms[state], character))
        self._next[state][character] = following
        return following

    def _number(self, term: _Term) -> int:
        number = self._numbers.get(term)
        if number is None:
            number = self._numbers[term] = len(self._terms)
            if number >= _MOST_STATES:
                raise UnsafePatternError("is too complex")
            self._terms.append(term)
            self._final.append(_nullable(term))
            self._next.append({})
        return number

    def _derive(self, term: _Term, character: str) -> _Term:
        """What may follow `character` in the term's language."""
        self._work += 1
        if self._work > _MOST_WORK:
            raise UnsafePatternError("is too complex")
        kind = term[0]
        if kind in ("either", "both"):
            join = _either if kind == "either" else _both
            return join(*(self._derive(part, character) for part in term[1]))
        if kind == "one":
            return _EMPTY if character in term[1] else _NOTHING
        if kind == "then":
            first = _then(self._derive(term[1], character), term[2])
            return _either(first, self._derive(term[2], character)) if _nullable(term[1]) else first
        if kind == "star":
            return _then(self._derive(term[1], character), term)
        return _not(self._derive(term[1], character)) if kind == "not" else _NOTHING


def _nullable(term: _Term) -> bool:
    kind = term[0]
    if kind == "then":
        return _nullable(term[1]) and _nullable(term[2])
    if kind == "either":
        return any(map(_nullable, term[1]))
    if kind == "both":
        return all(map(_nullable, term[1]))
    if kind == "not":
        return not _nullable(term[1])
    return kind in ("empty", "star")


def _then(first: _Term, second: _Term) -> _Term:
    if _NOTHING in (first, second):
        return _NOTHING
    if first == _EMPTY:
        return second
    if second == _EMPTY or first == second == _ALL:
        return first
    if first[0] == "then":
        return ("then", first[1], _then(first[2], second))
    return ("then", first, second)


def _either(*terms: _Term) -> _Term:
    return _joined("either", terms, neutral=_NOTHING, absorbing=_ALL)


def _both(*terms: _Term) -> _Term:
    return _joined("both", terms, neutral=_ALL, absorbing=_NOTHING)


def _joined(kind: str, terms: Iterable[_Term], *, neutral: _Term, absorbing: _Term) -> _Term:
    """`neutral` changes nothing, and beside `absorbing` nothing else counts."""
    parts: set[_Term] = set()
    for term in terms:
        parts |= term[1] if term[0] == kind else {term}
    parts.discard(neutral)
    if absorbing in parts:
        return absorbing
    if len(parts) < 2:
        return parts.pop() if parts else neutral
    return (kind, frozenset(parts))


def _not(term: _Term) -> _Term:
    if term == _NOTHING:
        return _ALL
    if term == _ALL:
        return _NOTHING
    return term[1] if term[0] == "not" else ("not", term)


def _star(term: _Term) -> _Term:
    return term if term[0] == "star" else _EMPTY if term in (_EMPTY, _NOTHING) else ("star", term)


def _build(tree: _Term, rest: _Term, *, at_start: bool = False) -> _Term:
    """The term of a parsed expression with what follows it; anchors and looking ahead speak about what follows."""
    kind = tree[0]
    if kind == "sequence":
        term, parts = rest, tree[1]
        for index in range(len(parts) - 1, -1, -1):
            begins = at_start and all(one[0] in ("start", "ahead") for one in parts[:index])
            term = _build(parts[index], term, at_start=begins)
        return term
    if kind in ("start", "end", "ahead"):
        return _seen(tree, rest, at_start)
    if not _looks(tree):
        return _then(_plain(tree), rest)
    if kind == "choice":
        return _either(*(_build(part, rest, at_start=at_start) for part in tree[1]))
    if tree[2:] == (0, 1):
        return _either(_build(tree[1], rest, at_start=at_start), rest)
    raise UnsafePatternError("repeats an anchor or a look ahead")


def _seen(tree: _Term, rest: _Term, at_start: bool) -> _Term:
    """What an anchor, or looking ahead, leaves of what follows."""
    if tree[0] == "end":
        return _EMPTY if _nullable(rest) else _NOTHING
    if tree[0] == "ahead":
        seen = _build(tree[1], _ALL, at_start=at_start)
        return _both(_not(seen) if tree[2] else seen, rest)
    if not at_start:
        raise UnsafePatternError("uses ^ after other characters")
    return rest


def _measured(tree: _Term) -> tuple[int, int]:
    """Characters in a row and in all, with repeats written out; raises UnsafePatternError where they are too many."""
    row = total = 1
    if tree[0] in ("sequence", "choice"):
        parts = [_measured(part) for part in tree[1]]
        rows = [one for one, _ in parts]
        row, total = sum(rows) if tree[0] == "sequence" else max(rows), sum(one for _, one in parts) + 1
    elif tree[0] == "repeat":
        times = max(tree[2], tree[3] or 1, 1)
        row, total = (times * one for one in _measured(tree[1]))
    elif tree[0] == "ahead":
        row, total = _measured(tree[1])
    if row > _LONGEST_ROW:
        raise UnsafePatternError(f"has more than {_LONGEST_ROW} characters in a row")
    if total > _MOST_CHARACTERS:
        raise UnsafePatternError("is too large")
    return row, total


def _looks(tree: _Term) -> bool:
    if tree[0] in ("sequence", "choice"):
        return any(map(_looks, tree[1]))
    return tree[0] in ("start", "end", "ahead") or (tree[0] == "repeat" and _looks(tree[1]))


def _plain(tree: _Term) -> _Term:
    kind = tree[0]
    if kind == "choice":
        return _either(*map(_plain, tree[1]))
    if kind == "sequence":
        return _build(tree, _EMPTY)
    if kind == "repeat":
        body, low, high = _plain(tree[1]), tree[2], tree[3]
        term = _star(body) if high is None else _EMPTY
        for _ in range(0 if high is None else high - low):
            term = _either(_EMPTY, _then(body, term))
        for _ in range(low):
            term = _then(body, term)
        return term
    return tree


class _Parser:
    """From text to a tree of sequence, choice, repeat, one (character out of a set), start, end and ahead."""

    def __init__(self, text: str) -> None:
        self._text, self._at, self._depth, self._looks = text, 0, 0, 0

    def parse(self) -> _Term:
        tree = self._choice()
        if self._at < len(self._text):
            raise UnsafePatternError("has a ) without a (")
        return tree

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        character = self._peek()
        if not character:
            raise UnsafePatternError("ends too early")
        self._at += 1
        return character

    def _choice(self) -> _Term:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise UnsafePatternError("is nested too deeply")
        parts = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            parts.append(self._sequence())
        self._depth -= 1
        return parts[0] if len(parts) == 1 else ("choice", tuple(parts))

    def _sequence(self) -> _Term:
        parts: list[_Term] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeated(self._atom()))
        return ("sequence", tuple(parts))

    def _repeated(self, atom: _Term) -> _Term:
        while True:
            bounds = self._bounds()
            if bounds is None:
                return atom
            low, high = bounds
            if self._peek() == "+":
                raise UnsafePatternError("uses a possessive repeat")
            if self._peek() == "?":
                self._at += 1
            if atom[0] == "repeat":
                raise UnsafePatternError("repeats a repeat")
            atom = ("repeat", atom, low, high)

    def _bounds(self) -> tuple[int, int | None] | None:
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        bounds = simple.get(self._peek())
        if bounds:
            self._at += 1
            return bounds
        repeat = _REPEAT.match(self._text, self._at)
        if repeat is None or repeat[1] + repeat[3] == "":
            return None
        self._at = repeat.end()
        low = int(repeat[1] or 0)
        high = low if not repeat[2] else int(repeat[3]) if repeat[3] else None
        if high is not None and high < low:
            raise UnsafePatternError(f"repeats from {low} to {high} times")
        return low, high

    def _atom(self) -> _Term:
        character = self._take()
        if character == "(":
            return self._group()
        if character == "[":
            return ("one", self._set())
        if character == "\\":
            return self._escape()
        if character in "*+?":
            raise UnsafePatternError(f"repeats nothing with {character}")
        if character in "^$":
            return ("start",) if character == "^" else ("end",)
        return ("one", _ALPHABET if character == "." else frozenset(character))

    def _group(self) -> _Term:
        kind = "plain"
        named = _NAMED_GROUP.match(self._text, self._at)
        if named:
            self._at = named.end()
        elif self._peek() == "?":
            opening = self._text[self._at : self._at + 2]
            kind = {"?:": "plain", "?=": "ahead", "?!": "not ahead"}.get(opening, "")
            if not kind:
                raise UnsafePatternError(f"uses ({opening}")
            self._at += 2
        inner = self._choice()
        if self._peek() != ")":
            raise UnsafePatternError("has a ( without a )")
        self._at += 1
        if kind == "plain":
            return inner
        self._looks += 1
        if self._looks > 8:
            raise UnsafePatternError("looks ahead too often")
        return ("ahead", inner, kind == "not ahead")

    def _escape(self) -> _Term:
        character = self._take()
        if character in "AZ":
            return ("start",) if character == "A" else ("end",)
        return ("one", self._escaped(character))

    def _escaped(self, character: str) -> frozenset[str]:
        if character in _CLASSES:
            return _CLASSES[character]
        if character.isalnum():
            raise UnsafePatternError(f"uses \\{character}")
        return frozenset(character)

    def _set(self) -> frozenset[str]:
        negated = self._peek() == "^"
        self._at += negated
        members: set[str] = set()
        first = True
        while first or self._peek() != "]":
            first = False
            one = self._member()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last = self._member()
                if len(one) != 1 or len(last) != 1:
                    raise UnsafePatternError("has a range between classes")
                low, high = ord(min(one)), min(ord(min(last)), 126)
                one = frozenset(map(chr, range(low, high + 1)))
            members |= one
        self._at += 1
        return _ALPHABET - members if negated else frozenset(members)

    def _member(self) -> frozenset[str]:
        character = self._take()
        return self._escaped(self._take()) if character == "\\" else frozenset(character)
