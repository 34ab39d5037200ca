"""What the operator's own ServiceAccount may write, as the variables and validations of a ValidatingAdmissionPolicy.

RBAC says which kinds it may write. This says which objects: pods of QwenDeployments that look like ours, and only in
the namespaces served. So a stolen token makes no privileged pod, and none in kube-system.

The chart defines the variables `served`, `releaseNamespace`, `keysSecret`, `lease`, `restricted`, `exempt`,
`injectedContainers`, `injectedVolumes`, `cachePath`, `hostNetwork` and `ipcLock`, and the lists. `cachePath` is the
folder of the nodes that is the cache, or "". `hostNetwork` and `ipcLock`: whether the chart gives them to the pods of
replicas over several nodes.
"""

from __future__ import annotations

from typing import Any

from qwen_operator.manifests import names
from qwen_operator.manifests.model_cache import ENGINE_VOLUME, VOLUME
from qwen_operator.manifests.multi_node import IPC_LOCK
from qwen_operator.tenancy.lists import Setting
from qwen_operator.tenancy.rules import RULES, allowed_variable

_ROLES = (names.ROLE_ENGINE, names.ROLE_ENGINE_WORKER, names.ROLE_INSPECTION, names.ROLE_FETCH)
_CONTAINERS = (
    names.ENGINE_CONTAINER,
    names.INSPECTION_CONTAINER,
    names.IMAGE_CONTAINER,
    names.FETCH_CONTAINER,
    names.FETCHED_CONTAINER,
    names.RUNTIME_CONTAINER,
)
_CONTAINER_SECURITY = ("allowPrivilegeEscalation", "capabilities", "readOnlyRootFilesystem")
_ROOT_SECURITY = (*_CONTAINER_SECURITY, "runAsUser", "runAsNonRoot")
_HOST = ("hostPID", "hostIPC", "shareProcessNamespace")


def _list(words: tuple[str, ...]) -> str:
    return "[" + ", ".join(f"'{word}'" for word in words) + "]"


def _refused(member: str, empty: str) -> str:
    """CEL for the entries of a pod's field that the rule for the same field of spec.pod refuses."""
    (rule,) = [rule for rule in RULES if rule.path == ("pod", member)]
    present = f"object.spec.?{member}.orValue({empty})"
    return f"{present}.filter(item, !({rule.cel.replace('VALUE', f'{present}[item]')}))"


def _label(of: str, key: str) -> str:
    return f"{of}.metadata.?labels[?'{key}'].orValue('')"


_MEMBER = f"{_label('object', names.LABEL_REPLICA)} != ''"
_HOST_NETWORK = f"(variables.hostNetwork && {_MEMBER} && object.spec.?hostNetwork.orValue(false))"
_LOCKS = f"(variables.ipcLock && {_MEMBER} && c.name == '{names.ENGINE_CONTAINER}')"
_SECURITY = f"variables.{allowed_variable(Setting.SECURITY_CONTEXT)}"
_PRIORITY = f"variables.{allowed_variable(Setting.PRIORITY_CLASSES)}"
_ACCOUNTS = f"variables.{allowed_variable(Setting.SERVICE_ACCOUNTS)}"
_PATH = "item.?hostPath.?path.orValue('')"
_CACHE = (
    "variables.cachePath != '' && "
    f"((item.name == '{VOLUME}' && {_PATH} == variables.cachePath) || "
    f"(item.name == '{ENGINE_VOLUME}' && {_PATH} == variables.cachePath + '/' + request.namespace))"
)
# An image that a user names as the source of the model. The rule for spec.source judges it.
_IMAGE = f"(item.name == '{names.SOURCE_VOLUME}' && item.all(m, m in ['name', 'image']))"
_VOLUMES = f"{_refused('volumes', '[]')}.filter(item, !({_CACHE}) && !{_IMAGE})"

VARIABLES: tuple[dict[str, str], ...] = tuple(
    {"name": name, "expression": expression}
    for name, expression in (
        ("writesPod", "request.resource.resource == 'pods' && request.operation != 'DELETE'"),
        ("changesSpec", "variables.writesPod && (oldObject == null || object.spec != oldObject.spec)"),
        ("deployment", f"variables.writesPod ? {_label('object', names.LABEL_DEPLOYMENT)} : ''"),
        (
            "judged",
            "variables.changesSpec && variables.restricted && "
            "!((request.namespace + '/' + variables.deployment) in variables.exempt)",
        ),
        (
            "containers",
            "variables.changesSpec ? (object.spec.containers + object.spec.?initContainers.orValue([]))"
            ".filter(c, !(c.name in variables.injectedContainers)) : []",
        ),
        (
            "refusedVolumes",
            f"variables.judged ? {_VOLUMES}.map(item, string(item.name))"
            ".filter(name, !(name in variables.injectedVolumes)) : []",
        ),
        (
            "refusedSecurity",
            f"variables.judged ? {_refused('securityContext', '{}')}.map(item, string(item)) : []",
        ),
    )
)

_OWNED = (
    "!variables.writesPod || (variables.deployment != '' && "
    f"{_label('object', names.LABEL_ROLE)} in {_list(_ROLES)} && "
    "object.metadata.name.startsWith(variables.deployment + '-') && "
    "object.metadata.?ownerReferences.orValue([]).exists(r, r.?controller.orValue(false) && "
    f"r.kind == 'QwenDeployment' && r.apiVersion.startsWith('{names.GROUP}/') && r.name == variables.deployment))"
)
_OURS_BEFORE = (
    "request.resource.resource != 'pods' || oldObject == null || "
    f"{_label('oldObject', names.LABEL_DEPLOYMENT)} != '' || "
    f"oldObject.metadata.?annotations[?'{names.ANNOTATION_OWNER_UID}'].hasValue() || "
    "oldObject.metadata.?ownerReferences.orValue([]).exists(r, r.kind == 'QwenDeployment')"
)
_NO_HOST = (
    "!variables.changesSpec || ("
    + " && ".join(f"!object.spec.?{name}.orValue(false)" for name in _HOST)
    + f" && (!object.spec.?hostNetwork.orValue(false) || {_HOST_NETWORK})"
    + " && !object.spec.?automountServiceAccountToken.orValue(true) && !has(object.spec.resourceClaims) && "
    "size(object.spec.?ephemeralContainers.orValue([])) == 0 && "
    # The scheduler chooses the node, with the tolerations that the lists allow.
    "(oldObject != null || object.spec.?nodeName.orValue('') == ''))"
)
_BOUND = (
    f"variables.containers.all(c, c.name in {_list(_CONTAINERS)} && has(c.securityContext) && "
    f"c.securityContext.all(m, m in ({_LOCKS} ? {_list(_ROOT_SECURITY)} : {_list(_CONTAINER_SECURITY)})) && "
    "!c.securityContext.?allowPrivilegeEscalation.orValue(true) && "
    f"c.securityContext.?capabilities.?add.orValue([]).all(one, one == '{IPC_LOCK}' && {_LOCKS}) && "
    "'ALL' in c.securityContext.?capabilities.?drop.orValue([]) && "
    f"c.?ports.orValue([]).all(p, p.?hostPort.orValue(0) == 0 || {_HOST_NETWORK}) && !has(c.volumeDevices))"
)
_TIGHT = (
    "!variables.judged || size(variables.refusedSecurity) == 0 && "
    f"('runAsNonRoot' in {_SECURITY} || object.spec.?securityContext.?runAsNonRoot.orValue(false)) && "
    f"('runAsUser' in {_SECURITY} || object.spec.?securityContext.?runAsUser.orValue(0) > 0) && "
    f"('seccompProfile' in {_SECURITY} || object.spec.?securityContext.?seccompProfile.?type.orValue('') == "
    "'RuntimeDefault')"
)
_EXEMPT = "; the platform team may allow it with tenancy.{setting}, or exempt the QwenDeployment with tenancy.exempt"

VALIDATIONS: tuple[dict[str, str], ...] = tuple(
    {"expression": expression, "message": message}
    for expression, message in (
        (
            "request.namespace in variables.served || (size(variables.served) == 0 && "
            "!request.namespace.startsWith('kube-')) || (request.namespace == variables.releaseNamespace && "
            "request.resource.resource in ['leases', 'secrets'])",
            "the operator may write only in the namespaces that it serves, and never in kube-system",
        ),
        (
            "!(request.resource.resource in ['leases', 'secrets']) || (request.namespace == variables.releaseNamespace "
            "&& object.metadata.name == (request.resource.resource == 'leases' ? variables.lease : "
            "variables.keysSecret))",
            "the operator may write only its own Lease and the Secret of the gateway's keys",
        ),
        (_OWNED, "the operator may write only pods that a QwenDeployment controls, with its labels and name"),
        (_OURS_BEFORE, "the operator may change and delete only pods of QwenDeployments"),
        (
            _NO_HOST,
            "pods of QwenDeployments share nothing with the node, and mount no token; the network of the node is for "
            "replicas over several nodes, if the chart's multiNode.hostNetwork gives it to them",
        ),
        (
            _BOUND,
            "containers of QwenDeployments drop all capabilities and gain no privileges; name those that your webhooks "
            "inject in admissionPolicies.operator.injectedContainers",
        ),
        (
            _TIGHT,
            "spec.securityContext: users other than root and RuntimeDefault"
            + _EXEMPT.format(setting="securityContext"),
        ),
        (
            "size(variables.refusedVolumes) == 0",
            "spec.volumes: a type of volume is not allowed" + _EXEMPT.format(setting="volumeTypes"),
        ),
        (
            f"!variables.judged || object.spec.?serviceAccountName.orValue('default') in {_ACCOUNTS}",
            "spec.serviceAccountName is not allowed" + _EXEMPT.format(setting="serviceAccounts"),
        ),
        (
            "!variables.judged || !object.spec.?priorityClassName.orValue('').startsWith('system-') || "
            f"object.spec.priorityClassName in {_PRIORITY}",
            "spec.priorityClassName is not allowed" + _EXEMPT.format(setting="priorityClasses"),
        ),
    )
)


def document() -> dict[str, Any]:
    """`variables` and `validations`, as in the policy's spec."""
    return {"variables": list(VARIABLES), "validations": list(VALIDATIONS)}
