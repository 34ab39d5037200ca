"""The lists of what tenants may ask for, and how the platform team extends them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from qwen_operator.tenancy.options import ENGINE_OPTIONS, ENGINE_VARIABLES


class Mode(StrEnum):
    """RESTRICTED: only what the lists allow. TRUSTED: everything that Kubernetes allows."""

    RESTRICTED = "restricted"
    TRUSTED = "trusted"


class Setting(StrEnum):
    """The lists, by their names below `tenancy` in the chart's values."""

    MODELS = "models"
    SERVICE_ACCOUNTS = "serviceAccounts"
    PRIORITY_CLASSES = "priorityClasses"
    RUNTIME_CLASSES = "runtimeClasses"
    SCHEDULERS = "schedulers"
    IMAGES = "images"
    ENGINE_ARGS = "engineArgs"
    ENV = "env"
    VOLUME_TYPES = "volumeTypes"
    MOUNT_PATHS = "mountPaths"
    SECURITY_CONTEXT = "securityContext"
    TOLERATIONS = "tolerations"
    POD_AFFINITY_FIELDS = "podAffinityFields"
    RESOURCES = "resources"
    LABELS = "labels"
    ANNOTATIONS = "annotations"


BUILT_IN: Mapping[Setting, tuple[str, ...]] = {
    Setting.MODELS: (),
    Setting.SERVICE_ACCOUNTS: ("default",),
    Setting.PRIORITY_CLASSES: (),
    Setting.RUNTIME_CLASSES: ("nvidia",),
    Setting.SCHEDULERS: ("default-scheduler",),
    Setting.IMAGES: (),
    Setting.ENGINE_ARGS: ENGINE_OPTIONS,
    Setting.ENV: ENGINE_VARIABLES,
    Setting.VOLUME_TYPES: ("persistentVolumeClaim", "emptyDir", "configMap", "secret", "downwardAPI", "projected"),
    Setting.MOUNT_PATHS: ("/mnt/*", "/data/*", "/templates", "/templates/*"),
    Setting.SECURITY_CONTEXT: (),
    Setting.TOLERATIONS: ("nvidia.com/gpu",),
    Setting.POD_AFFINITY_FIELDS: ("labelSelector", "topologyKey", "matchLabelKeys", "mismatchLabelKeys"),
    Setting.RESOURCES: ("cpu", "memory", "ephemeral-storage"),
    Setting.LABELS: (),
    Setting.ANNOTATIONS: (),
}
"""What every tenant may ask for. The values of the chart add to it.

Labels and annotations also allow every name without a domain, and tolerations those of a lost node for some seconds.
An empty list of models allows every model.
"""

MODEL_PATHS = ("/models/*", "/home/qwen/huggingface")
"""Mount paths that every tenant may use too, as long as the list of models is empty.

The engine reads weights there, from a claim or from the cache of a hub. So a mount could put other weights in place of
those that the list allows.
"""

PATTERNS = frozenset(
    {
        Setting.MODELS,
        Setting.IMAGES,
        Setting.ENV,
        Setting.MOUNT_PATHS,
        Setting.TOLERATIONS,
        Setting.RESOURCES,
        Setting.LABELS,
        Setting.ANNOTATIONS,
    }
)
"""The lists in which an entry may end with `*`, which stands for any rest."""


@dataclass(frozen=True, slots=True)
class Tenancy:
    """The decision of the platform team.

    `added` extends the built-in lists for all namespaces, `by_namespace` for one. `exempt` has QwenDeployments as
    NAMESPACE/NAME that may ask for everything. `engine_image` is the chart's image: every tag and digest of it is
    allowed. `hub` is the scheme of the hub from which models without a source come.
    """

    mode: Mode = Mode.RESTRICTED
    added: Mapping[Setting, tuple[str, ...]] = field(default_factory=dict)
    by_namespace: Mapping[str, Mapping[Setting, tuple[str, ...]]] = field(default_factory=dict)
    exempt: frozenset[str] = frozenset()
    engine_image: str = ""
    hub: str = "hf"

    def judges(self, namespace: str, name: str) -> bool:
        """Whether the rules are for this QwenDeployment."""
        return self.mode is Mode.RESTRICTED and f"{namespace}/{name}" not in self.exempt

    def allowed(self, namespace: str, setting: Setting) -> tuple[str, ...]:
        """The whole list for one namespace."""
        own = self.by_namespace.get(namespace, {}).get(setting, ())
        return (*BUILT_IN[setting], *self._more(namespace, setting), *self.added.get(setting, ()), *own)

    def _more(self, namespace: str, setting: Setting) -> tuple[str, ...]:
        """What is built in besides, by the rest of the decision."""
        if setting is Setting.IMAGES:
            return image_patterns(self.engine_image)
        if setting is Setting.MOUNT_PATHS and not self.allowed(namespace, Setting.MODELS):
            return MODEL_PATHS
        return ()


def image_patterns(image: str) -> tuple[str, ...]:
    """The patterns of every tag and digest of the chart's engine image."""
    if not image:
        return ()
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    repository = head + slash + last.partition(":")[0]
    return (image, repository, f"{repository}:*", f"{repository}@*")


def matches(text: str, patterns: tuple[str, ...]) -> bool:
    """Whether a pattern is the text, or ends with `*` and begins the text.

    After `:*` and `@*`, which stand for the tag or the digest of an image, the rest has no slash. Otherwise the part
    before would be the name of a registry, and the rest its port.
    """
    return any(_matches(text, pattern) for pattern in patterns)


def _matches(text: str, pattern: str) -> bool:
    if text == pattern:
        return True
    if not pattern.endswith("*") or not text.startswith(pattern[:-1]):
        return False
    return not pattern.endswith((":*", "@*")) or "/" not in text[len(pattern) - 1 :]
