"""Keeps Kubernetes from expanding text that somebody else wrote.

The kubelet replaces $(NAME) in commands, arguments and values of variables by the variable NAME, after all checks of
the operator and of admission. In the same step it replaces two dollar signs by one. So the operator writes such text
with twice as many dollar signs, and the container gets exactly what the user wrote.
"""

from __future__ import annotations

_EXPANDED = ("$(", "$$")


def escaped(text: str) -> str:
    """The text that the kubelet turns into `text`."""
    return text.replace("$", "$$") if _changes(text) else text


def unescaped(text: str) -> str:
    """What the kubelet makes of a result of `escaped`."""
    return text.replace("$$", "$")


def _changes(text: str) -> bool:
    return any(sign in text for sign in _EXPANDED)
