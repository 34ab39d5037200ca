"""The forms of `spec.source.uri`, one for each scheme. The CRD checks them, and its messages show them.

`sources/` has one module for each scheme. Each module uses its form from here, because the API may not import it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qwen_operator.api.fields import Rule, matches


@dataclass(frozen=True, slots=True)
class UriForm:
    """How the URIs of one scheme look.

    `form` shows the parts in capitals, and `example` is a valid URI. `pattern` is a regular expression for the whole
    URI with the same meaning in Python and RE2. Every scheme rejects a path with `..`. `details` says in words what
    else the pattern needs. `repository` is true if the part after the scheme is ORGANISATION/NAME of a hub's
    repository, which has revisions.
    """

    scheme: str
    form: str
    example: str
    pattern: str
    details: str = ""
    repository: bool = False

    @property
    def prefix(self) -> str:
        """The scheme with its colon and slashes."""
        return f"{self.scheme}://"

    def rule(self) -> Rule:
        """The rule that a URI of this scheme has this form. It accepts every URI of another scheme."""
        return Rule(
            f"!self.startsWith('{self.prefix}') || (self.matches('{self.pattern}') && !self.contains('/../') && "
            "!self.endsWith('/..'))",
            f"must have the form {self.form}{self.details}; right would be {self.example}",
            lambda uri: not uri.startswith(self.prefix) or (matches(self.pattern, uri) and not _climbs(uri)),
        )


def _climbs(uri: str) -> bool:
    return "/../" in uri or uri.endswith("/..")


def _hub(scheme: str) -> UriForm:
    return UriForm(
        scheme,
        form=f"{scheme}://ORGANISATION/NAME",
        example=f"{scheme}://Qwen/Qwen1.5-7B-Chat",
        pattern=f"^{scheme}://[A-Za-z0-9][-A-Za-z0-9._]*/[A-Za-z0-9][-A-Za-z0-9._]*$",
        repository=True,
    )


PVC = UriForm(
    "pvc",
    form="pvc://CLAIM/PATH",
    example="pvc://models/qwen/7b-chat",
    pattern=r"^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[!-~]*)?$",
    details=", with the name of a PersistentVolumeClaim, without white space and without '..' in the path",
)
HF = _hub("hf")
MODELSCOPE = _hub("modelscope")

FORMS = {form.scheme: form for form in (PVC, HF, MODELSCOPE)}
"""The forms by scheme, in the order in which messages name them."""


def _starts(field: str, forms: Iterable[UriForm]) -> str:
    return " || ".join(f"{field}.startsWith('{form.prefix}')" for form in forms)


def _joined(words: Iterable[str], last: str) -> str:
    *others, final = words
    return f"{', '.join(others)} {last} {final}" if others else final


_PREFIXES = tuple(form.prefix for form in FORMS.values())
_REPOSITORIES = tuple(form for form in FORMS.values() if form.repository)
_REPOSITORY_PREFIXES = tuple(form.prefix for form in _REPOSITORIES)

URI_RULES = (
    Rule(
        _starts("self", FORMS.values()),
        f"must begin with {_joined(_PREFIXES, 'or')}; right would be "
        f"{_joined([form.form for form in FORMS.values()], 'or')}",
        lambda uri: uri.startswith(_PREFIXES),
    ),
    *(form.rule() for form in FORMS.values()),
)
"""The rules of `spec.source.uri`."""

REVISION_RULE = Rule(
    f"!has(self.revision) || {_starts('self.uri', _REPOSITORIES)}",
    f"revision is for repositories of a hub, {_joined(_REPOSITORY_PREFIXES, 'and')}: remove it, or choose a "
    "repository of a hub",
    lambda source: source.get("revision") is None or str(source.get("uri")).startswith(_REPOSITORY_PREFIXES),
)
"""The rule of `spec.source` about its revision."""
