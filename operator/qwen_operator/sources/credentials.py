"""The credentials of private sources as variables of containers, and what an inspection that downloads has. Pure."""

from typing import Any

from qwen_operator.api.engine import EnvVar
from qwen_operator.api.fields import Passthrough
from qwen_operator.api.source import SecretRef
from qwen_operator.checkpoints.hubs import TOKEN_VARIABLE

# More than `fetch.heads` writes.
TMP = ({"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "tmp", "mountPath": "/tmp"})
"""The volume and the mount of an inspection pod that writes what it reads."""
_NEEDED = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_OPTIONAL = ("AWS_SESSION_TOKEN", "AWS_REGION")


def token(reference: SecretRef | None, name: str = TOKEN_VARIABLE) -> EnvVar | None:
    """The variable `name` with the token of a private repository; None without a Secret."""
    if reference is None:
        return None
    value = Passthrough({"secretKeyRef": {"name": reference.name, "key": reference.key}})
    return EnvVar(name, None, value)


def of_bucket(reference: SecretRef | None) -> tuple[EnvVar, ...]:
    """The variables with the entries of a Secret for a bucket; () without one."""
    if reference is None:
        return ()
    entries: list[dict[str, Any]] = [{"name": reference.name, "key": key} for key in _NEEDED]
    entries += [{"name": reference.name, "key": key, "optional": True} for key in _OPTIONAL]
    return tuple(EnvVar(str(entry["key"]), None, Passthrough({"secretKeyRef": entry})) for entry in entries)
