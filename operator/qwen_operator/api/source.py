"""`spec.source`: where the model's files are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qwen_operator.api import uris
from qwen_operator.api.fields import described

_SECRET_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
_KEY = r"^[-._a-zA-Z0-9]+$"


@dataclass(frozen=True, slots=True)
class SecretRef:
    """One entry of a Secret in the namespace of the QwenDeployment."""

    name: str = described("Name of the Secret.", min_length=1, max_length=253, pattern=_SECRET_NAME)
    key: str = described(
        "Key of the entry. Default: token.", default="token", min_length=1, max_length=253, pattern=_KEY
    )


class Located:
    """What has the address of files. The classes with this base declare the field."""

    __slots__ = ()
    uri: str

    @property
    def scheme(self) -> str:
        """The beginning of the uri, without colon and slashes. It is a key of `uris.FORMS`."""
        return self.uri.partition("://")[0]

    @property
    def location(self) -> str:
        """The rest of the uri. Each scheme reads it in its own way."""
        return self.uri.partition("://")[2]


@dataclass(frozen=True, slots=True)
class Source(Located):
    """Where the bytes of the model are."""

    RULES: ClassVar = (
        uris.REVISION_RULE,
        uris.SECRET_RULE,
        uris.DIGEST_RULE,
        uris.ENDPOINT_RULE,
    )

    uri: str = described(
        "Where the model's files are. pvc://CLAIM/PATH is a folder in a PersistentVolumeClaim of this namespace. The "
        "engine mounts it read-only, and the operator inspects config.json and the weights before an engine starts. "
        "hf://ORGANISATION/NAME is a repository on Hugging Face, and modelscope://ORGANISATION/NAME is one on "
        "ModelScope. A container downloads it before the engine starts, or the engine itself if no commit is known. "
        "s3://BUCKET/PREFIX is a folder in a bucket of S3, which a container downloads too. "
        "oci://REGISTRY/REPOSITORY:TAG/PATH is a folder of an image, which the node pulls and the engine mounts "
        "read-only; @sha256:DIGEST may stand in place of the tag. Examples: pvc://models/qwen/7b-chat, "
        "hf://Qwen/Qwen1.5-7B-Chat, s3://weights/qwen/7b-chat, oci://registry.example.com/models/qwen:7b-chat.",
        min_length=1,
        max_length=512,
        rules=uris.URI_RULES,
    )
    revision: str | None = described(
        "Branch, tag or commit of a repository on a hub. The operator asks the hub once for the commit and plans with "
        "it. All replicas load that commit. Default: the main branch. For s3:// it is the 40 "
        "hexadecimal digits that status.model.commit shows: other files are refused. Examples: main, v1.0, "
        "4f2c8b1d0e9a7c6f5b3d2e1a0f9c8b7a6d5e4f3c.",
        default=None,
        min_length=1,
        max_length=128,
        rules=(uris.REVISION_FORM_RULE,),
    )
    secret_ref: SecretRef | None = described(
        "Secret of this namespace with a token for a private or gated repository on a hub. Only the container that "
        "downloads gets it: the engine only if it downloads by itself. The operator does not read it. So an "
        "inspection pod with the token reads config.json and the heads of the weights. For s3:// the key does not "
        "count: the Secret has the entries AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_SESSION_TOKEN and "
        "AWS_REGION if they are needed. For oci:// the key does not count either: the node pulls with the Secret, as "
        "with those in pod.imagePullSecrets. Example: {name: hf-token, key: token}.",
        default=None,
    )

    endpoint: str | None = described(
        "Address of the S3 server, for s3://. If its host begins with the name of the bucket and a dot, that is not "
        "repeated in the path. Default: the chart value objectStore.endpoint, or AWS. Example: https://minio.example.com:9000.",
        default=None,
        min_length=1,
        max_length=256,
        rules=(uris.ENDPOINT_FORM_RULE,),
    )

    file: str | None = described(
        "A GGUF file of the source, as a path below its folder or repository. SGLang loads only this file, on one GPU. "
        "Its header is read before an engine starts. Of a split file, name the first part: the container that "
        "downloads the file joins all parts. Examples: qwen1_5-7b-chat-q4_k_m.gguf, q8_0/model.gguf, "
        "model-q8_0-00001-of-00002.gguf.",
        default=None,
        min_length=1,
        max_length=256,
        rules=(uris.FILE_FORM_RULE, uris.PART_RULE),
    )

    @property
    def repository(self) -> str | None:
        """ORGANISATION/NAME if the source is a hub, else None."""
        return self.location if uris.FORMS[self.scheme].repository else None
