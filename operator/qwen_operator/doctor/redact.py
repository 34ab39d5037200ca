"""Takes credentials out of objects and texts before a person hands them on. Pure.

Of environment variables, annotations and headers, only values under known harmless names stay. In all other text, what
looks like a credential is replaced. A false alarm costs a detail; a credential that stays costs more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from qwen_operator.untrusted import clean

HIDDEN = "[hidden]"
_LONGEST_LINE = 2000
# Words that make the value of an option, a variable or a member a credential.
_WORDS = (
    r"api[_-]?keys?|access[_-]?key|private[_-]?key|client[_-]?key|license[_-]?key|admin[_-]?key|encryption[_-]?key"
    r"|account[_-]?key|secret|token(?!s\b|iz)|passw(?:or)?d|pwd|passphrase|credentials?|auth(?!or)|bearer|cookie"
    r"|session[_-]?id|signature|(?<![a-z])sig(?![a-z])|webhook|dsn|connection[_-]?string"
)
_SUSPICIOUS = re.compile(_WORDS, re.IGNORECASE)
# Options and fields with such a word that hold no credential.
_HARMLESS = re.compile(
    r"^-{0,2}(special_|skip-|skip_)?(tokenizer[\w-]*|token[_-]?usage|max[\w-]*tokens?|[\w-]*_tokens|chunked[\w-]*"
    r"|automountserviceaccounttoken|serviceaccounttoken|secretname|secretkeyref|imagepullsecrets|secretref|authority)$",
    re.IGNORECASE,
)
# Their values are settings of the engine, and support asks for them.
_SHOWN_VARIABLES = re.compile(
    r"(HOME|USER|LOGNAME|PATH|PYTHONPATH|TZ|LANG|HF_HOME|HF_HUB_OFFLINE|TRANSFORMERS_OFFLINE|HF_HUB_ENABLE_HF_TRANSFER"
    r"|(SGLANG|NCCL|CUDA|TORCH|TORCHDYNAMO|OMP|UCX|NVIDIA_VISIBLE|NVIDIA_DRIVER)_[A-Z0-9_]+"
    r"|QWEN_(CONFIG|WATCH_NAMESPACES|READ_NODES|LEASE_NAME|LOG_LEVEL)|CUDA_VISIBLE_DEVICES)"
)
_SHOWN_ANNOTATIONS = re.compile(
    r"(qwen-operator\.dev|meta\.helm\.sh)/.*|kubectl\.kubernetes\.io/restartedAt|deployment\.kubernetes\.io/revision"
)

_VALUE = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|(?:[^\s,;&)\]}"']|[,;&)](?=\S))+)"""
# Private keys and certificates, in lines of their own or on one line with \n.
_BLOCK = re.compile(r"-----BEGIN [A-Z ]+-----.*?(?:-----END [A-Z ]+-----|\Z)", re.DOTALL)
_PATTERNS = (
    (_BLOCK, HIDDEN),
    (re.compile(r"([?&](?:[\w.-]{0,40}key|code|pass|jwt|[kt])=)[^&\s\"']+", re.I), rf"\1{HIDDEN}"),
    (
        re.compile(
            r"((?:proxy-)?authorization|x-api-key|(?:set-)?cookie)([\"']?\s*[:=]\s*)(?:b?[\"'][^\"']*[\"']|[^\r\n]*)",
            re.I,
        ),
        rf"\1\2{HIDDEN}",
    ),
    (re.compile(r"\b(bearer|basic|negotiate)\s+[\w.~+/=-]{6,}", re.I), rf"\1 {HIDDEN}"),
    # scheme://user:password@host; also the user alone, which may be a token.
    (re.compile(r"(\b[a-z][a-z0-9+.-]{0,20}://)[^\s/@'\"]+@", re.I), rf"\1{HIDDEN}@"),
    # Well-known forms of tokens: JWT, Hugging Face, OpenAI, GitHub, GitLab, Slack, AWS, Google, Stripe, npm, PyPI.
    (
        re.compile(
            r"\b(eyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?|hf_\w{8,}|sk[-_][\w-]{8,}|(?:ghp|gho|ghu|ghs|ghr|github_pat)_\w{8,}"
            r"|glpat-[\w-]{8,}|xox[a-z]-[\w-]{8,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|AIza[\w-]{20,}|(?:rk|pk)_(?:live|test)_\w+"
            r"|npm_\w{20,}|pypi-[\w-]{20,}|dop_v1_\w+|ya29\.[\w-]+)"
        ),
        HIDDEN,
    ),
)
# Without the beginning of the name, since looking for it from every place would take quadratic time.
_ASSIGNED = re.compile(rf"((?:{_WORDS})[\w.-]{{0,80}})([\"']?\s{{0,5}}[=:]\s{{0,5}})(b?{_VALUE})", re.IGNORECASE)
_BEGINNING = re.compile(r"[\w-]{0,80}$")
_OPTION = re.compile(rf"(?<![\w-])(--?[\w.-]{{0,80}}?(?:{_WORDS})[\w.-]{{0,80}})(\s+)({_VALUE})", re.IGNORECASE)
_RUN = re.compile(r"(?<![A-Za-z0-9+/_=-])(?<!sha256:)[A-Za-z0-9+/_=-]{24,}")
# Names of pods: Kubernetes ends them with random texts of at most ten characters.
_OBJECT_NAME = re.compile(r"[a-z0-9]{1,12}(-[a-z0-9]{1,12})+")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HEX = re.compile(r"[0-9a-fA-F]{32,}")
# Colours of a terminal, and characters without a width, which could stand inside a name.
_INVISIBLE = re.compile(
    r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"
)
# SGLang's --log-requests writes prompts and answers.
_PROMPT = re.compile(r"(Receive|Finish): obj=|\"?(prompt|messages|input_ids)\"?\s*[:=]|text=['\"]")


def line(text: object, limit: int = _LONGEST_LINE) -> str:
    """One line without control characters and credentials."""
    return clean(_scrubbed(_INVISIBLE.sub("", str(text)[: 2 * limit])), limit)


def without_blocks(text: str) -> str:
    """A text of many lines without the private keys and certificates that span lines."""
    return _BLOCK.sub(HIDDEN, text)


def log_line(text: str) -> str:
    """A line of an engine's log. If it may hold a client's prompt, the line is left out."""
    return "[a request or an answer, left out]" if _PROMPT.search(text) else line(text)


def manifest(value: Any) -> Any:
    """A copy of a Kubernetes object without credentials. Names of Secrets stay, since they are no secrets."""
    return _copy(value, "")


def _copy(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return _mapping(value, key)
    if isinstance(value, list | tuple):
        return _sequence(value, key)
    if isinstance(value, str):
        return HIDDEN if _is_credential(key) and value else line(value)
    return value


def _mapping(value: Mapping[str, Any], key: str) -> Any:
    if key in ("data", "stringData", "binaryData"):
        return {str(name): HIDDEN for name in value}
    if key == "annotations":
        return {
            str(name): line(text) if _SHOWN_ANNOTATIONS.fullmatch(str(name)) else HIDDEN for name, text in value.items()
        }
    if key == "volumeAttributes":
        return {str(name): HIDDEN for name in value}
    return {line(name, 300): _copy(member, str(name)) for name, member in value.items() if name != "managedFields"}


def _sequence(value: list[Any] | tuple[Any, ...], key: str) -> list[Any]:
    if key == "env":
        return [_variable(one) for one in value]
    if key == "httpHeaders":
        return [
            {"name": line(one.get("name")), "value": HIDDEN} if isinstance(one, Mapping) else HIDDEN for one in value
        ]
    copied, hide = [], False
    for one in value:
        # The value of an option may be the next word.
        copied.append(HIDDEN if hide and isinstance(one, str) and not one.startswith("-") else _copy(one, ""))
        hide = isinstance(one, str) and one.startswith("-") and "=" not in one and _is_credential(one)
    return copied


def _variable(one: Any) -> Any:
    if not isinstance(one, Mapping):
        return HIDDEN
    name = str(one.get("name"))
    shown: dict[str, Any] = {"name": line(name, 300)}
    if "value" in one:
        known = _SHOWN_VARIABLES.fullmatch(name) and not _is_credential(name)
        shown["value"] = line(one["value"]) if known else HIDDEN
    if "valueFrom" in one:
        shown["valueFrom"] = _copy(one["valueFrom"], "valueFrom")
    return shown


def _is_credential(name: str) -> bool:
    return bool(_SUSPICIOUS.search(name)) and not _HARMLESS.match(name)


def _scrubbed(text: str) -> str:
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    text = _ASSIGNED.sub(_assigned, text)
    text = _OPTION.sub(lambda match: match[0] if _HARMLESS.match(match[1]) else f"{match[1]}{match[2]}{HIDDEN}", text)
    return _RUN.sub(lambda match: HIDDEN if _is_random(match[0]) else match[0], text)


def _assigned(match: re.Match[str]) -> str:
    beginning = _BEGINNING.search(match.string[max(0, match.start() - 80) : match.start()])
    name = f"{beginning[0] if beginning else ''}{match[1]}".rpartition(".")[2]
    if _HARMLESS.match(name) or match[3] in ("None", "null", "true", "false", "True", "False", HIDDEN):
        return match[0]
    if match[1].lower().startswith("token") and match[3].isdigit() and len(match[3]) < 10:
        # A count of tokens, or the number of one: #new-token: 512, eos_token_id=151645.
        return match[0]
    return f"{match[1]}{match[2]}{HIDDEN}"


def _is_random(run: str) -> bool:
    """Whether a long word looks like a random key: its kinds of characters change too often for a name.

    A random text of letters and digits changes the kind at more than half of its places, one of hexadecimal digits at
    nearly half. Names such as Qwen3-235B-A22B-Instruct-2507-FP8 change it at a fifth.
    """
    if any(form.fullmatch(run) for form in (_UUID, _COMMIT, _OBJECT_NAME)):
        return False
    if _HEX.fullmatch(run):
        return True
    letters = run.strip("-_=/+")
    pairs = (pair for pair in pairwise(letters) if "".join(pair).isalnum())
    changes = sum(_kind(one) != _kind(other) for one, other in pairs)
    return len(letters) >= 20 and changes / len(letters) > 0.33


def _kind(character: str) -> str:
    return "digit" if character.isdigit() else "upper" if character.isupper() else "lower"
