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
    Setting.SERVICE_ACCOUNTS: ("default",),
    Setting.PRIORITY_CLASSES: (),
    Setting.RUNTIME_CLASSES: ("nvidia",),
    Setting.SCHEDULERS: ("default-scheduler",),
    Setting.IMAGES: (),
    Setting.ENGINE_ARGS: ENGINE_OPTIONS,
    Setting.ENV: ENGINE_VARIABLES,
    Setting.VOLUME_TYPES: ("persistentVolumeClaim", "emptyDir", "configMap", "secret", "downwardAPI", "projected"),
    Setting.MOUNT_PATHS: ("/mnt/*", "/data/*", "/models/*", "/templates", "/templates/*", "/home/qwen/huggingface"),
    Setting.SECURITY_CONTEXT: (),
    Setting.TOLERATIONS: ("nvidia.com/gpu",),
    Setting.POD_AFFINITY_FIELDS: ("labelSelector", "topologyKey", "matchLabelKeys", "mismatchLabelKeys"),
    Setting.RESOURCES: ("cpu", "memory", "ephemeral-storage"),
    Setting.LABELS: (),
    Setting.ANNOTATIONS: (),
}
"""What every tenant may ask for. The values of the chart add to it.

Labels and annotations also allow every name without a domain, and tolerations those of a lost node for some seconds.
"""

PATTERNS = frozenset(
    {
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
    allowed.
    """

    mode: Mode = Mode.RESTRICTED
    added: Mapping[Setting, tuple[str, ...]] = field(default_factory=dict)
    by_namespace: Mapping[str, Mapping[Setting, tuple[str, ...]]] = field(default_factory=dict)
    exempt: frozenset[str] = frozenset()
    engine_image: str = ""

    def judges(self, namespace: str, name: str) -> bool:
        """Whether the rules are for this QwenDeployment."""
        return self.mode is Mode.RESTRICTED and f"{namespace}/{name}" not in self.exempt

    def allowed(self, namespace: str, setting: Setting) -> tuple[str, ...]:
        """The whole list for one namespace."""
        own = self.by_namespace.get(namespace, {})
        images = image_patterns(self.engine_image) if setting is Setting.IMAGES else ()
        return (*BUILT_IN[setting], *images, *self.added.get(setting, ()), *own.get(setting, ()))


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
