"""`spec.adapters`: LoRA adapters that the engines load beside the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen_operator.api import uris
from qwen_operator.api.fields import Rule, described, matches

MOST_ADAPTERS = 16
VOLUME_FORM = r"^adapters-([0-9]+|list)$"
"""The names of the volumes with the adapters' claims, and with the list of adapters."""
_LONGEST_NAME = 40
_NAME_FORM = r"^[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$"


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """Where the files of an adapter are."""

    uri: str = described(
        "Where the adapter's files are: pvc://CLAIM/PATH, a folder in a PersistentVolumeClaim of this namespace, with "
        "adapter_config.json and adapter_model.safetensors as PEFT writes them. The engine mounts it read-only. "
        "Example: pvc://models/adapters/support.",
        min_length=1,
        max_length=512,
        rules=(
            Rule(
                f"self.startsWith('{uris.PVC.prefix}')",
                f"must begin with {uris.PVC.prefix}, because adapters of a hub are not supported yet: download the "
                f"adapter to a claim; right would be {uris.PVC.form}",
                lambda uri: uri.startswith(uris.PVC.prefix),
            ),
            uris.PVC.rule(),
        ),
    )

    @property
    def claim(self) -> str:
        """The name of the claim."""
        return self.uri.removeprefix(uris.PVC.prefix).partition("/")[0]

    @property
    def folder(self) -> str:
        """The folder in the claim, without slashes at its ends, "" for the root."""
        return self.uri.removeprefix(uris.PVC.prefix).partition("/")[2].strip("/")


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
