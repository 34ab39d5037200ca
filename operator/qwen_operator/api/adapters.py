"""`spec.adapters`: LoRA adapters that the engines load beside the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from qwen_operator.api import uris
from qwen_operator.api.fields import described, matches
from qwen_operator.api.source import Located, SecretRef

MOST_ADAPTERS = 16
VOLUME_FORM = r"^adapters-([0-9]+|list)$"
"""The names of the volumes with the adapters' claims, and with the list of adapters."""
_LONGEST_NAME = 40
_NAME_FORM = r"^[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$"


@dataclass(frozen=True, slots=True)
class AdapterSource(Located):
    """Where the files of an adapter are."""

    RULES: ClassVar = (uris.REVISION_RULE, uris.DIGEST_RULE, uris.SECRET_RULE)

    uri: str = described(
        "Where the adapter's files are: adapter_config.json and adapter_model.safetensors, as PEFT writes them. "
        "pvc://CLAIM/PATH is a folder in a PersistentVolumeClaim of this namespace. hf://ORGANISATION/NAME and "
        "modelscope://ORGANISATION/NAME are repositories, and s3://BUCKET/PREFIX is a folder in a bucket of the store "
        "in the chart value objectStore.endpoint, or of AWS. A container fetches these before the engine starts or, "
        "with the chart's cache, while it serves. The "
        "engine mounts all of them read-only. Examples: pvc://models/adapters/support, hf://our-team/support-lora.",
        min_length=1,
        max_length=512,
        rules=uris.ADAPTER_URI_RULES,
    )
    revision: str | None = described(
        "Branch, tag or commit of a repository on a hub. The inspection finds its commit once, and all replicas load "
        "that. Default: the main branch. For s3:// it is the 40 hexadecimal digits that stand for the names, sizes and "
        "ETags of the two files: others are refused. Examples: main, v1.0.",
        default=None,
        min_length=1,
        max_length=128,
        rules=(uris.REVISION_FORM_RULE,),
    )
    secret_ref: SecretRef | None = described(
        "Secret of this namespace with a token for a private repository, or with the entries AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY for s3://, as in spec.source.secretRef. Only the inspection pod and the container that "
        "fetches get it. Example: {name: hf-token, key: token}.",
        default=None,
    )

    @property
    def place(self) -> str:
        """The uri, and @REVISION if there is one: what stands for this source in records, and for its folder."""
        return f"{self.uri}@{self.revision}" if self.revision else self.uri

    @property
    def claim(self) -> str:
        """The name of the claim of a pvc:// uri."""
        return self.location.partition("/")[0]

    @property
    def folder(self) -> str:
        """The folder in the claim, without slashes at its ends, "" for the root."""
        return self.location.partition("/")[2].strip("/")


@dataclass(frozen=True, slots=True)
class Adapter:
    """One LoRA adapter."""

    name: str = described(
        "Name of the adapter. Clients ask for it as the model SERVEDNAME:NAME, for example qwen-72b:support.",
        min_length=1,
        max_length=_LONGEST_NAME,
        pattern=_NAME_FORM,
    )
    source: AdapterSource = described("Where the adapter's files are.")


def is_adapter_name(text: str) -> bool:
    """Whether the text can be the name of an adapter."""
    return len(text) <= _LONGEST_NAME and matches(_NAME_FORM, text)


def adapter_names(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the adapters of a spec that nobody checked, without those that cannot be names."""
    entries = spec.get("adapters")
    listed = entries[:MOST_ADAPTERS] if isinstance(entries, list) else []
    names = [entry.get("name") for entry in listed if isinstance(entry, Mapping)]
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str) and is_adapter_name(name)))
