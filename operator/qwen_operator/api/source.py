"""`spec.source`: where the model's files are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qwen_operator.api import uris
from qwen_operator.api.fields import Rule, described


@dataclass(frozen=True, slots=True)
class Source:
    """Where the bytes of the model are."""

    RULES: ClassVar = (uris.REVISION_RULE, uris.FILE_RULE)

    uri: str = described(
        "Where the model's files are. pvc://CLAIM/PATH is a folder in a PersistentVolumeClaim of this namespace. The "
        "engine mounts it read-only, and the operator inspects config.json and the weights before an engine starts. "
        "hf://ORGANISATION/NAME is a repository on Hugging Face, and modelscope://ORGANISATION/NAME is one on "
        "ModelScope. The engine downloads it. Examples: pvc://models/qwen/7b-chat, hf://Qwen/Qwen1.5-7B-Chat.",
        min_length=1,
        max_length=512,
        rules=uris.URI_RULES,
    )
    revision: str | None = described(
        "Branch, tag or commit of a repository on a hub. The operator asks the hub once for the commit and plans with "
        "it. All replicas load that commit from Hugging Face. From ModelScope they load the branch or tag as it is "
        "when they start. Default: the main branch. Examples: main, v1.0, 4f2c8b1d0e9a7c6f5b3d2e1a0f9c8b7a6d5e4f3c.",
        default=None,
        min_length=1,
        max_length=128,
        rules=(
            Rule(
                f"self.matches('{uris.REVISION_FORM}') && !self.contains('..')",
                "must be a branch, a tag or a commit, without white space and without '..'; right would be v1.0",
                uris.is_revision,
            ),
        ),
    )

    file: str | None = described(
        "A GGUF file of the source, as a path below its folder or repository. SGLang loads only this file, on one GPU. "
        "The operator reads its header before an engine starts. For pvc:// and hf://. Examples: "
        "qwen1_5-7b-chat-q4_k_m.gguf, q8_0/model.gguf.",
        default=None,
        min_length=1,
        max_length=256,
        rules=(uris.FILE_FORM_RULE,),
    )

    @property
    def scheme(self) -> str:
        """The beginning of the uri, without colon and slashes. It is a key of `uris.FORMS`."""
        return self.uri.partition("://")[0]

    @property
    def location(self) -> str:
        """The rest of the uri. Each scheme reads it in its own way."""
        return self.uri.partition("://")[2]

    @property
    def repository(self) -> str | None:
        """ORGANISATION/NAME if the source is a hub, else None."""
        return self.location if uris.FORMS[self.scheme].repository else None
