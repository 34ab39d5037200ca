"""The CustomResourceDefinition: whether it is there, is this version's, and who manages it."""

from collections.abc import Iterator

from qwen_operator import objects
from qwen_operator.api.crd import definition
from qwen_operator.doctor.types import ClusterFacts, Finding, Mark
from qwen_operator.objects import mapping, members

NAME = "definition"


def check(facts: ClusterFacts) -> Iterator[Finding]:
    listed, installed = facts.definition, facts.installation.installed
    if listed.absent:
        cure = "install the chart with crds.enabled, or apply the output of qwen-operator crds"
        mark = Mark.BAD if installed else Mark.OK
        yield Finding(mark, NAME, f"the CRD does not exist: {cure}" if installed else "the CRD does not exist yet")
        return
    if listed.problem:
        yield Finding(Mark.UNKNOWN, NAME, f"not checked: {listed.problem}")
        return
    crd = listed.first
    name = objects.text(crd, "metadata", "name")
    if not objects.holds(crd, "Established"):
        yield Finding(Mark.BAD, NAME, f"the CRD {name} is not established: {_why(crd)}")
    difference = _difference(crd)
    if difference:
        yield Finding(
            Mark.WARNING,
            NAME,
            f"the CRD {name} is not the one of this version ({difference}): upgrade the chart with crds.enabled, or "
            "run qwen-operator crds | kubectl apply --server-side -f -",
        )
    else:
        yield Finding(Mark.OK, NAME, f"the CRD {name} is the one of this version, managed by {_managers(crd)}")


def _why(crd: objects.Object) -> str:
    names = objects.condition(crd, "NamesAccepted")
    reason = names if names.get("status") == "False" else objects.condition(crd, "Established")
    return str(reason.get("message") or "see kubectl describe crd") + "; remove the other CRD that has its names"


def _difference(crd: objects.Object) -> str:
    """How the stored definition differs from ours. "" if it does not."""
    ours = definition()["spec"]
    stored = {str(one.get("name")): one for one in members(crd, "spec", "versions")}
    for version in ours["versions"]:
        other = stored.pop(version["name"], None)
        if other is None:
            return f"version {version['name']} is missing"
        path = _first_difference(version["schema"]["openAPIV3Schema"], mapping(other, "schema", "openAPIV3Schema"))
        if path is not None:
            return f"its schema differs at {path or 'the root'}"
        if not other.get("served"):
            return f"version {version['name']} is not served"
    return f"it has more versions: {', '.join(sorted(stored))}" if stored else ""


def _first_difference(ours: object, stored: object) -> str | None:
    """The path of the first part that differs, None if the schemas are equal. Our schema bounds the depth."""
    if isinstance(ours, dict) and isinstance(stored, dict):
        for key in sorted({*ours, *stored}):
            path = _first_difference(ours.get(key), stored.get(key))
            if path is not None:
                return ".".join(part for part in (str(key), path) if part)
        return None
    if isinstance(ours, list) and isinstance(stored, list) and len(ours) == len(stored):
        pairs = enumerate(zip(ours, stored, strict=True))
        paths = ((at, _first_difference(one, other)) for at, (one, other) in pairs)
        return next((f"[{at}]{path and '.' + path}" for at, path in paths if path is not None), None)
    return None if ours == stored else ""


def _managers(crd: objects.Object) -> str:
    release = objects.annotations(crd).get("meta.helm.sh/release-name")
    namespace = objects.annotations(crd).get("meta.helm.sh/release-namespace")
    if release:
        return f"the Helm release {namespace}/{release}"
    names = {
        str(one.get("manager"))
        for one in members(crd, "metadata", "managedFields")
        if one.get("subresource") != "status"
    }
    return ", ".join(sorted(names)) or "nobody named"
