"""Tenants and their keys: reads the mounted Secret and ConfigMap, and decides what the proxy may use of them. Pure.

An entry of the Secret is a tenant: its name is the tenant's, its value one key per line. A tenant without limits of its
own has the defaults. An entry that is not usable harms only itself: its tenant keeps the keys that it had before.
"""

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen_operator import untrusted

MAX_KEYS = 64
MAX_KEY_CHARACTERS = 512
MAX_PATTERNS = 256
_LEVELS = 8
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,253}")
_KEY = re.compile(r"[!-~]+")
_PATTERN = re.compile(r"[!-~]{1,256}")
_LIMITS = {"requestsPerMinute": 0, "tokensPerMinute": 0, "concurrentRequests": 1, "bodyBytes": 0}
"""The numbers that a tenant may have, and the least value of each. 0 is: no limit, or for bodyBytes the gateway's."""


class TenantsError(ValueError):
    """A tenant's limits are wrong. The message names the field, its value and what is allowed."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one tenant may do. `models` are patterns, in which `*` stands for any text."""

    models: tuple[str, ...] = ("*",)
    numbers: Mapping[str, int] = field(
        default_factory=lambda: {
            "requestsPerMinute": 0,
            "tokensPerMinute": 0,
            "concurrentRequests": 256,
            "bodyBytes": 0,
        }
    )

    def document(self, max_body_bytes: int) -> dict[str, Any]:
        """As the proxy reads it. A body is never allowed to be larger than the gateway's own limit."""
        body = min(self.numbers["bodyBytes"] or max_body_bytes, max_body_bytes)
        return {**self.numbers, "models": list(self.models), "bodyBytes": body}


@dataclass(frozen=True, slots=True)
class Tenants:
    """The content of the ConfigMap."""

    defaults: Limits = field(default_factory=Limits)
    own: Mapping[str, Limits] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Keys:
    """Tenant -> its keys, and what is wrong with the entries that were not taken over. No sentence has a key."""

    of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def read_keys(entries: Mapping[str, str], before: Mapping[str, tuple[str, ...]]) -> Keys:
    """The keys of the mounted Secret. `before` has the last good keys of the entries that are invalid now."""
    good: dict[str, tuple[str, ...]] = {}
    faults: dict[str, str] = {}
    for tenant, text in sorted(entries.items()):
        keys = tuple(dict.fromkeys(line.rstrip("\r") for line in text.split("\n") if line.rstrip("\r")))
        if fault := _fault(tenant, keys):
            faults[tenant] = fault
        else:
            good[tenant] = keys
    for tenant, other in _shared(good):
        faults[tenant] = f"the tenants {tenant!r} and {other!r} have the same key; each needs its own"
    for tenant in faults:
        good.pop(tenant, None)
    taken = {key for keys in good.values() for key in keys}
    for tenant in sorted(faults):
        kept = tuple(key for key in before.get(tenant, ()) if key not in taken)
        if kept:
            good[tenant] = kept
            taken.update(kept)
    return Keys(good, tuple(faults[tenant] for tenant in sorted(faults)))


def _fault(tenant: str, keys: tuple[str, ...]) -> str | None:
    if not _TENANT.fullmatch(tenant):
        return f"the tenant id {_shown(tenant)} is not usable; it may contain letters, digits, '.', '_' and '-'"
    if not keys:
        return f"the entry of tenant {tenant!r} is empty; it must have one key per line"
    if len(keys) > MAX_KEYS:
        return f"tenant {tenant!r} has {len(keys)} keys; at most {MAX_KEYS} are allowed"
    for number, key in enumerate(keys, 1):
        if not _KEY.fullmatch(key) or len(key) > MAX_KEY_CHARACTERS:
            return (
                f"key {number} of tenant {tenant!r} is not usable; a key is one word of at most {MAX_KEY_CHARACTERS} "
                "printable ASCII characters"
            )
    return None


def _shared(keys: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """(tenant, another tenant with the same key), both ways."""
    owners: dict[str, str] = {}
    pairs = []
    for tenant in sorted(keys):
        for key in keys[tenant]:
            other = owners.setdefault(key, tenant)
            if other != tenant:
                pairs += [(tenant, other), (other, tenant)]
    return pairs


def read_tenants(text: str) -> Tenants:
    """The tenants of the mounted ConfigMap: `{"defaults": {...}, "tenants": {NAME: {...}}}`.

    Raises TenantsError with a sentence that names field and value, or ValueError if it is not JSON.
    """
    root = untrusted.decode(text.encode(), _LEVELS)
    if not isinstance(root, dict) or not isinstance(root.get("tenants", {}), dict):
        raise TenantsError("the tenants must be a mapping with the fields defaults and tenants")
    defaults = _limits("tenantDefaults", root.get("defaults", {}), Limits())
    own = {}
    for name, value in root.get("tenants", {}).items():
        if not _TENANT.fullmatch(name):
            raise TenantsError(f"tenants has {_shown(name)}; a name may contain letters, digits, '.', '_' and '-'")
        own[name] = _limits(f"tenants.{name}", value, defaults)
    return Tenants(defaults, own)


def _limits(where: str, value: Any, base: Limits) -> Limits:
    if not isinstance(value, dict):
        raise TenantsError(f"{where} must be a mapping")
    if unknown := sorted(value.keys() - _LIMITS.keys() - {"models"}):
        raise TenantsError(f"{where} has the field {_shown(unknown[0])}; it may have models, {', '.join(_LIMITS)}")
    numbers = dict(base.numbers)
    for name, least in _LIMITS.items():
        number = value.get(name, numbers[name])
        if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= 2**53:
            raise TenantsError(f"{where}.{name} is {_shown(number)}; it must be a whole number of at least {least}")
        numbers[name] = number
    models = value.get("models", list(base.models))
    if not isinstance(models, list) or len(models) > MAX_PATTERNS:
        raise TenantsError(f"{where}.models must be a list of at most {MAX_PATTERNS} patterns")
    for pattern in models:
        if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern):
            wrong = _shown(pattern)
            raise TenantsError(f"{where}.models has {wrong}; a pattern is a served name, in which * is any text")
    return Limits(tuple(models), numbers)


def _shown(value: object) -> str:
    return repr(value if isinstance(value, int | float) else untrusted.clean(value, 80))


@dataclass(frozen=True, slots=True)
class Frame:
    """The settings that do not change while the proxy runs."""

    auth: bool
    max_body_bytes: int
    max_buffered_bytes: int
    body_timeout_seconds: int
    cors_origins: tuple[str, ...]


def settings_file(frame: Frame, keys: Keys, tenants: Tenants | None, problems: int, salt: str) -> str:
    """What nginx reads: the tenants by the digests of their keys, HMAC-SHA1 with a salt that only this pod knows.

    Without `tenants`, or without a key where keys are asked for, the proxy is not ready and serves nobody.
    """
    digests = {digest(salt, key): tenant for tenant, own in keys.of.items() for key in own} if frame.auth else {}
    known = tenants or Tenants()
    return json.dumps(
        {
            "ready": tenants is not None and (bool(digests) or not frame.auth),
            "auth": frame.auth,
            "salt": salt,
            "keys": digests,
            "defaults": known.defaults.document(frame.max_body_bytes),
            "tenants": {name: one.document(frame.max_body_bytes) for name, one in known.own.items()},
            "bufferedBytes": frame.max_buffered_bytes,
            "bodyTimeoutSeconds": frame.body_timeout_seconds,
            "corsOrigins": list(frame.cors_origins),
            "problems": problems,
        },
        sort_keys=True,
    )


def digest(salt: str, key: str) -> str:
    """By which nginx looks up a key."""
    return base64.b64encode(hmac.new(salt.encode(), key.encode(), hashlib.sha1).digest()).decode()
