"""Service meshes that put a sidecar into our pods, or take their traffic over."""

from collections.abc import Iterator

from qwen_operator import objects
from qwen_operator.doctor.types import ClusterFacts, Finding, Mark

NAME = "mesh"
_OFF = ("disabled", "false", "none", "")
_SIGNS = {
    "istio-injection": "Istio adds a sidecar to the pods",
    "istio.io/rev": "Istio adds a sidecar to the pods",
    "istio.io/dataplane-mode": "Istio's ambient mode takes over the traffic of the pods",
    "linkerd.io/inject": "Linkerd adds a sidecar to the pods",
    "kuma.io/sidecar-injection": "Kuma adds a sidecar to the pods",
    "consul.hashicorp.com/connect-inject": "Consul adds a sidecar to the pods",
}
_CURE = (
    "the gateway and the operator call engines by pod address, so exclude port 8000 of the engines from the mesh and "
    "let the inspection pod run without a sidecar, or take the namespace out of the mesh"
)


def check(facts: ClusterFacts) -> Iterator[Finding]:
    clean = []
    for served in facts.existing:
        if served.namespace.problem:
            yield Finding(Mark.UNKNOWN, NAME, f"namespace {served.name} not checked: {served.namespace.problem}")
            continue
        signs = list(_signs(served.namespace.first))
        for sign, effect in signs:
            yield Finding(Mark.WARNING, NAME, f"namespace {served.name} has {sign}: {effect}; {_CURE}")
        if not signs:
            clean.append(served.name)
    if clean:
        yield Finding(Mark.OK, NAME, f"no service mesh is switched on by labels of {', '.join(clean)}")


def _signs(namespace: objects.Object) -> Iterator[tuple[str, str]]:
    # Linkerd reads an annotation, the others read labels.
    marks = {**objects.annotations(namespace), **objects.labels(namespace)}
    for key, effect in _SIGNS.items():
        value = marks.get(key)
        if value is not None and str(value) not in _OFF:
            yield f"{key}={value}", effect
