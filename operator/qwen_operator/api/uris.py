"""The forms of `spec.source.uri`, one for each scheme. The CRD checks them, and its messages show them.

`sources/` has one module for each scheme. Each module uses its form from here, because the API may not import it.
"""

from __future__ import annotations

import re
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
            cure,
        )


@dataclass(frozen=True, slots=True)
class HubAddress:
    """The repository that the address of a hub's page is about, and its revision, "" for the main branch."""

    scheme: str
    repository: str
    revision: str

    @property
    def uri(self) -> str:
        """The value of `spec.source.uri`."""
        return f"{self.scheme}://{self.repository}"

    def cure(self) -> str:
        """What to set in place of the address."""
        revision = f" and spec.source.revision to {self.revision}" if self.revision else ""
        if self.scheme == HF.scheme and not revision:
            return f"Set spec.model to {self.repository}, or spec.source.uri to {self.uri}"
        return f"Set spec.source.uri to {self.uri}{revision}"


_ADDRESS = re.compile(r"(?:(?P<scheme>[A-Za-z]+):/*)?(?P<rest>[^?#\s]+)[^\s]*", re.ASCII)
_PATH_PART = re.compile(r"[A-Za-z0-9][-A-Za-z0-9._]*", re.ASCII)
# The words of a page's address before the revision.
_VIEWS = ("tree", "blob", "resolve", "raw", "commit", "view")

MAIN_BRANCHES = ("main", "master")
"""The names that hubs give to the branch which is meant without a revision."""
REVISION_FORM = r"^[A-Za-z0-9][-A-Za-z0-9._/+]*$"


def hub_address(text: str) -> HubAddress | None:
    """The repository that a pasted text names: the address of any page of it, or nearly a uri. None for other texts."""
    match = _ADDRESS.fullmatch(text.strip())
    if match is None:
        return None
    scheme = (match["scheme"] or "").casefold()
    parts = [part for part in match["rest"].split("/") if part]
    host = _HOSTS.get(parts[0].casefold()) if parts else None
    if host is None and scheme not in (HF.scheme, MODELSCOPE.scheme):
        return None
    if host is not None:
        scheme, parts = host, parts[1:]
    if parts[:1] == ["models"]:
        parts = parts[1:]
    if len(parts) < 2 or parts[0] in ("datasets", "spaces") or not all(map(_PATH_PART.fullmatch, parts[:2])):
        return None
    at = next((index for index, part in enumerate(parts[2:5], 2) if part in _VIEWS), None)
    revision = parts[at + 1] if at is not None and len(parts) > at + 1 else ""
    name = parts[1].removesuffix(".git")
    return HubAddress(scheme, f"{parts[0]}/{name}", "" if revision in MAIN_BRANCHES else revision)


def cure(text: object) -> str:
    """What to set in place of a pasted address, "" for other values."""
    address = hub_address(text) if isinstance(text, str) else None
    return address.cure() if address else ""


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
S3 = UriForm(
    "s3",
    form="s3://BUCKET/PREFIX",
    example="s3://weights/qwen/7b-chat",
    # The names of objects may have empty parts, and folders cannot.
    pattern=r"^s3://[a-z0-9][-a-z0-9.]{1,61}[a-z0-9](/[-A-Za-z0-9._+=@]+)*/?$",
    details=", with the name of a bucket, and a prefix of letters, digits and -._+=@/ without '..' and without '//'",
)

_LABEL = "[a-z0-9][-a-z0-9]*"
# Without a dot or a port the first part would be the name of a repository on Docker Hub.
_REGISTRY = f"({_LABEL}([.]{_LABEL})+(:[0-9]{{1,5}})?|{_LABEL}:[0-9]{{1,5}}|localhost)"
_DIGEST_OF_IMAGE = "@sha256:[0-9a-f]{64}"
OCI = UriForm(
    "oci",
    form="oci://REGISTRY/REPOSITORY:TAG/PATH",
    example="oci://registry.example.com/models/qwen:7b-chat",
    pattern=(
        f"^oci://{_REGISTRY}(/[a-z0-9]([-a-z0-9._]*[a-z0-9])?)+"
        f"(:[A-Za-z0-9_][-A-Za-z0-9._]*({_DIGEST_OF_IMAGE})?|{_DIGEST_OF_IMAGE})(/[-A-Za-z0-9._+=@]+)*/?$"
    ),
    details=(
        ", with the host of a registry, a repository in lower case, a tag or @sha256:DIGEST, and, unless the model is "
        "at the top of the image, its folder, of letters, digits and -._+=@/ without '..' and without '//'"
    ),
)

_HOSTS = {
    "huggingface.co": HF.scheme,
    "www.huggingface.co": HF.scheme,
    "hf.co": HF.scheme,
    "modelscope.cn": MODELSCOPE.scheme,
    "www.modelscope.cn": MODELSCOPE.scheme,
    "modelscope.ai": MODELSCOPE.scheme,
    "www.modelscope.ai": MODELSCOPE.scheme,
}

FORMS = {form.scheme: form for form in (PVC, HF, MODELSCOPE, S3, OCI)}
"""The forms by scheme, in the order in which messages name them."""


ADAPTER_FORMS = (PVC, HF, MODELSCOPE, S3)
"""The forms of `spec.adapters[].source.uri`."""


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
        cure,
    ),
    *(form.rule() for form in FORMS.values()),
)
"""The rules of `spec.source.uri`."""

_ADAPTER_PREFIXES = tuple(form.prefix for form in ADAPTER_FORMS)
ADAPTER_URI_RULES = (
    Rule(
        _starts("self", ADAPTER_FORMS),
        f"must begin with {_joined(_ADAPTER_PREFIXES, 'or')}; right would be "
        f"{_joined([form.form for form in ADAPTER_FORMS], 'or')}",
        lambda uri: uri.startswith(_ADAPTER_PREFIXES),
        cure,
    ),
    *(form.rule() for form in ADAPTER_FORMS),
)
"""The rules of `spec.adapters[].source.uri`."""

_REMOTE = (*_REPOSITORIES, S3)
_REMOTE_PREFIXES = (*_REPOSITORY_PREFIXES, S3.prefix)
_DIGEST = "^[0-9a-f]{40}$"
REVISION_RULE = Rule(
    f"!has(self.revision) || {_starts('self.uri', _REMOTE)}",
    f"revision is for repositories of a hub, {_joined(_REPOSITORY_PREFIXES, 'and')}, and for {S3.prefix}: remove it, "
    "or choose one of these",
    lambda source: source.get("revision") is None or str(source.get("uri")).startswith(_REMOTE_PREFIXES),
)
"""The rule of `spec.source` about its revision."""
DIGEST_RULE = Rule(
    f"!has(self.revision) || !self.uri.startsWith('{S3.prefix}') || self.revision.matches('{_DIGEST}')",
    "revision of s3:// is the 40 hexadecimal digits of status.model.commit, which stand for the names, sizes and ETags "
    "of the files: set it to these, or remove it",
    lambda source: (
        source.get("revision") is None
        or not str(source.get("uri")).startswith(S3.prefix)
        or matches(_DIGEST, str(source["revision"]))
    ),
)
"""The rule of `spec.source` about the revision of objects in a bucket."""
ENDPOINT_RULE = Rule(
    f"!has(self.endpoint) || self.uri.startsWith('{S3.prefix}')",
    f"endpoint is for {S3.prefix}: remove it; the chart value hub.url is the address of a mirror of a hub",
    lambda source: source.get("endpoint") is None or str(source.get("uri")).startswith(S3.prefix),
)
"""The rule of `spec.source` about its endpoint."""
ENDPOINT_FORM = "^https?://[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[0-9]{1,5})?$"
ENDPOINT_FORM_RULE = Rule(
    f"self.matches('{ENDPOINT_FORM}')",
    "must be the address of an S3 server, without a path; right would be https://minio.example.com:9000",
    lambda endpoint: matches(ENDPOINT_FORM, endpoint),
)
"""The rule of `spec.source.endpoint` itself."""

_FILE_FORM = "^[A-Za-z0-9][-A-Za-z0-9._+/]*[.]gguf$"
FILE_FORM_RULE = Rule(
    f"self.matches('{_FILE_FORM}') && !self.contains('..') && !self.contains('//')",
    "must be the path of a GGUF file in the source, without white space and without '..'; right would be "
    "qwen1_5-7b-chat-q4_k_m.gguf",
    lambda file: matches(_FILE_FORM, file) and ".." not in file and "//" not in file,
)
"""The rule of `spec.source.file` itself."""
_PART = "-[0-9]{5}-of-[0-9]{5}[.]gguf$"
_FIRST_PART = "-00001-of-[0-9]{5}[.]gguf$"
PART_RULE = Rule(
    f"!self.matches('{_PART}') || self.matches('{_FIRST_PART}')",
    "is a later part of a split file: name the first part, and the others are found; right would be "
    "qwen2-72b-instruct-q8_0-00001-of-00002.gguf",
    lambda file: re.search(_PART, file) is None or re.search(_FIRST_PART, file) is not None,
)
"""The rule of `spec.source.file` about split files."""
SECRET_RULE = Rule(
    f"!has(self.secretRef) || {_starts('self.uri', (*_REMOTE, OCI))}",
    f"secretRef is for repositories of a hub, {_joined(_REPOSITORY_PREFIXES, 'and')}, and for {S3.prefix} and "
    f"{OCI.prefix}: remove it, or choose one of these",
    lambda source: (
        source.get("secretRef") is None or str(source.get("uri")).startswith((*_REMOTE_PREFIXES, OCI.prefix))
    ),
)
"""The rule of `spec.source` about its Secret."""


def is_uri(text: str) -> bool:
    """Whether the text can be the value of `spec.source.uri`."""
    return all(rule.holds(text) for rule in URI_RULES)


def is_revision(text: str) -> bool:
    """Whether the text can be the value of `spec.source.revision`, apart from its length."""
    return matches(REVISION_FORM, text) and ".." not in text


REVISION_FORM_RULE = Rule(
    f"self.matches('{REVISION_FORM}') && !self.contains('..')",
    "must be a branch, a tag or a commit, without white space and without '..'; right would be v1.0",
    is_revision,
)
"""The rule of `spec.source.revision` itself."""
