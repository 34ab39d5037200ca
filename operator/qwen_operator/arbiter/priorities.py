"""The priority that a pod gets from its PriorityClass. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qwen_operator import objects, untrusted
from qwen_operator.manifests.names import Manifest

_LOWEST, _HIGHEST = -(2**31), 2**31 - 1


class Priorities:
    """The values of the PriorityClasses of a cluster, as kube-apiserver gives them to new pods.

    A pod without a class gets the value of the global default, and 0 if there is none. If several classes say that they
    are the default, the lowest value counts. A class that does not exist counts as 0: the API server makes no such pod.
    """

    def __init__(self, classes: Iterable[Manifest]) -> None:
        self._values: dict[str, int] = {}
        defaults: list[int] = []
        for one in classes:
            value = untrusted.whole(one.get("value"), _LOWEST, _HIGHEST, 0)
            self._values[objects.text(one, "metadata", "name")] = value
            if one.get("globalDefault") is True:
                defaults.append(value)
        self._default = min(defaults, default=0)

    def of(self, deployment: Mapping[str, object], default_class: str | None) -> int:
        """The priority of new engine pods of a QwenDeployment, whose spec may be invalid.

        `default_class`: the chart's class for engine pods.
        """
        name = objects.text(deployment, "spec", "pod", "priorityClassName") or default_class
        return self._values.get(name, 0) if name else self._default
