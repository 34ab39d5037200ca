"""What tenants may ask for, as a table that the operator's rules and the policy of the API server must both keep."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Spec = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """A part of a spec, and the field that is `refused`, or "" if it is allowed. `before` is what the object had."""

    id: str
    spec: Spec
    refused: str = ""
    before: Spec = field(default_factory=dict)


def pod(**members: Any) -> Spec:
    return {"pod": members}


def engine(**members: Any) -> Spec:
    return {"engine": members}


def volume(**source: Any) -> Spec:
    return pod(volumes=[{"name": "v", **source}])


def mount(path: str, **members: Any) -> Spec:
    return pod(volumes=[{"name": "v", "emptyDir": {}}], volumeMounts=[{"name": "v", "mountPath": path, **members}])


def security(**members: Any) -> Spec:
    return pod(securityContext=members)


def toleration(**members: Any) -> Spec:
    return pod(tolerations=[members])


def affinity(**term: Any) -> Spec:
    terms = [{"topologyKey": "kubernetes.io/hostname", "labelSelector": {}, **term}]
    return pod(affinity={"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}})


def preferred(**term: Any) -> Spec:
    terms = [{"weight": 1, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", **term}}]
    return pod(affinity={"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": terms}})


def variable(name: str, **members: Any) -> Spec:
    return engine(env=[{"name": name, **members}])


def args(*words: str) -> Spec:
    return engine(args=list(words))


TOKEN = {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}}
LOST = "node.kubernetes.io/unreachable"
SECRET = {"secretKeyRef": {"name": "s", "key": "k"}}
HOST: Spec = {"name": "host", "hostPath": {"path": "/"}}
CODE = "--trust-remote-code"


def host_at(*paths: str) -> Spec:
    """The node's files at the paths; below /mnt/own, a volume that everybody may have."""
    names = {path: "own" if path == "/mnt/own" else "host" for path in paths}
    return pod(
        volumes=[HOST, {"name": "own", "emptyDir": {}}],
        volumeMounts=[{"name": name, "mountPath": path} for path, name in names.items()],
    )


ALLOWED: tuple[Case, ...] = (
    Case("nothing", {}),
    Case("a label", pod(labels={"team": "a"})),
    Case("an annotation", pod(annotations={"note": "text"})),
    Case("pull secrets", pod(imagePullSecrets=[{"name": "own"}])),
    Case("a node selector", pod(nodeSelector={"topology.kubernetes.io/zone": "a"})),
    Case(
        "spread",
        pod(topologySpreadConstraints=[{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}]),
    ),
    Case("GPU taint", toleration(key="nvidia.com/gpu", operator="Exists")),
    Case("lost node for a time", toleration(key=LOST, operator="Exists", effect="NoExecute", tolerationSeconds=60)),
    Case("node affinity", pod(affinity={"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}})),
    Case("own pods apart", affinity()),
    Case("own pods near", preferred(labelSelector={"matchLabels": {"a": "b"}})),
    Case("nvidia's runtime", pod(runtimeClassName="nvidia")),
    Case("default scheduler", pod(schedulerName="default-scheduler")),
    Case("default account", pod(serviceAccountName="default")),
    Case(
        "resources", pod(resources={"requests": {"cpu": "1"}, "limits": {"memory": "8Gi", "ephemeral-storage": "1Gi"}})
    ),
    Case("claim", volume(persistentVolumeClaim={"claimName": "c"})),
    Case("emptyDir", volume(emptyDir={"medium": "Memory", "sizeLimit": "1Gi"})),
    Case("ConfigMap", volume(configMap={"name": "c"})),
    Case("Secret", volume(secret={"secretName": "s"})),
    Case("projected", volume(projected={"sources": [{"secret": {"name": "s"}}, {"configMap": {"name": "c"}}]})),
    Case("downward API", volume(downwardAPI={"items": []})),
    Case("a mount", mount("/templates", readOnly=True)),
    Case("a mount below", mount("/mnt/x", subPath="y")),
    Case("cache", mount("/home/qwen/huggingface")),
    Case("another user", security(runAsUser=1000, runAsGroup=1000, fsGroup=1000, supplementalGroups=[2000])),
    Case("tight", security(runAsNonRoot=True, seccompProfile={"type": "RuntimeDefault"})),
    Case("fsGroup policy", security(fsGroupChangePolicy="Always")),
    Case("AppArmor default", security(appArmorProfile={"type": "RuntimeDefault"})),
    Case("another tag", engine(image="localhost/sglang-cpu:v0.5.22")),
    Case("digest", engine(image="localhost/sglang-cpu@sha256:" + "0" * 64)),
    Case("an option", args("--schedule-policy=lpm")),
    Case("an option with a space", args("--schedule-policy lpm")),
    Case("an option and its value", args("--chunked-prefill-size", "-1")),
    Case("a value that only quantizes", args("--quantization=fp8")),
    Case("several values", args("--cuda-graph-bs-decode", "1", "2")),
    Case("a variable", variable("OMP_NUM_THREADS", value="1")),
    Case("token of a hub", variable("HF_TOKEN", valueFrom=SECRET)),
    Case("other fields of the engine", engine(version="0.5.23", kvCacheType="BFloat16", startupSeconds=100)),
)

REFUSED: tuple[Case, ...] = (
    Case("mesh label", pod(labels={"sidecar.istio.io/inject": "true"}), "spec.pod.labels"),
    Case("workload identity", pod(labels={"azure.workload.identity/use": "true"}), "spec.pod.labels"),
    Case(
        "AppArmor",
        pod(annotations={"container.apparmor.security.beta.kubernetes.io/engine": "x"}),
        "spec.pod.annotations",
    ),
    Case("runtime annotation", pod(annotations={"io.kubernetes.cri-o.Devices": "/dev/sda"}), "spec.pod.annotations"),
    Case("networks", pod(annotations={"k8s.v1.cni.cncf.io/networks": "host"}), "spec.pod.annotations"),
    Case("critical", pod(priorityClassName="system-node-critical"), "spec.pod.priorityClassName"),
    Case("tolerate all", toleration(operator="Exists"), "spec.pod.tolerations"),
    Case("tolerate all by effect", toleration(operator="Exists", effect="NoExecute"), "spec.pod.tolerations"),
    Case("empty key", toleration(key="", operator="Exists"), "spec.pod.tolerations"),
    Case("control plane", toleration(key="node-role.kubernetes.io/control-plane"), "spec.pod.tolerations"),
    Case("lost node for ever", toleration(key=LOST, operator="Exists", effect="NoExecute"), "spec.pod.tolerations"),
    Case(
        "lost node unscheduled", toleration(key=LOST, effect="NoSchedule", tolerationSeconds=9), "spec.pod.tolerations"
    ),
    Case("unknown member", toleration(key="nvidia.com/gpu", other="x"), "spec.pod.tolerations"),
    Case("number as key", toleration(key=7), "spec.pod.tolerations"),
    Case("others' pods", affinity(namespaceSelector={}), "spec.pod.affinity"),
    Case("others' pods by name", affinity(namespaces=["kube-system"]), "spec.pod.affinity"),
    Case("others' pods preferred", preferred(namespaces=["kube-system"]), "spec.pod.affinity"),
    Case("unknown affinity", pod(affinity={"other": {}}), "spec.pod.affinity"),
    Case("text as affinity", pod(affinity={"podAffinity": "x"}), "spec.pod.affinity"),
    Case(
        "null in affinity",
        pod(affinity={"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": "x"}}),
        "spec.pod.affinity",
    ),
    Case("runtime", pod(runtimeClassName="runc-privileged"), "spec.pod.runtimeClassName"),
    Case("scheduler", pod(schedulerName="other"), "spec.pod.schedulerName"),
    Case("account", pod(serviceAccountName="builder"), "spec.pod.serviceAccountName"),
    Case("device", pod(resources={"limits": {"devices.kubevirt.io/kvm": 1}}), "spec.pod.resources.limits"),
    Case("hugepages", pod(resources={"requests": {"hugepages-2Mi": "2Mi"}}), "spec.pod.resources.requests"),
    *(
        Case(f"volume {kind}", volume(**{kind: source}), "spec.pod.volumes")
        for kind, source in {
            "hostPath": {"path": "/"},
            "csi": {"driver": "d"},
            "ephemeral": {"volumeClaimTemplate": {}},
            "image": {"reference": "i"},
            "nfs": {"server": "s", "path": "/"},
            "iscsi": {"targetPortal": "t", "iqn": "i", "lun": 0},
            "flexVolume": {"driver": "d"},
            "unknown": {},
        }.items()
    ),
    Case("token", volume(projected={"sources": [TOKEN]}), "spec.pod.volumes"),
    Case(
        "token beside a Secret", volume(projected={"sources": [{"secret": {"name": "s"}}, TOKEN]}), "spec.pod.volumes"
    ),
    Case("two kinds", volume(emptyDir={}, hostPath={"path": "/"}), "spec.pod.volumes"),
    Case("text as sources", volume(projected={"sources": "x"}), "spec.pod.volumes"),
    Case("over programs", mount("/usr/lib/python3/dist-packages"), "spec.pod.volumeMounts"),
    Case("over the runtime", mount("/qwen-runtime/qwen-runtime.pyz"), "spec.pod.volumeMounts"),
    Case("over user packages", mount("/home/qwen/.local"), "spec.pod.volumeMounts"),
    Case("climbing", mount("/mnt/../usr"), "spec.pod.volumeMounts"),
    Case("expanded path", mount("/mnt/x", subPathExpr="$(P)"), "spec.pod.volumeMounts"),
    Case("propagation", mount("/mnt/x", mountPropagation="Bidirectional"), "spec.pod.volumeMounts"),
    Case(
        "the operator's volume",
        pod(volumeMounts=[{"name": "qwen-runtime", "mountPath": "/mnt/r"}]),
        "spec.pod.volumeMounts",
    ),
    Case("root", security(runAsUser=0), "spec.pod.securityContext"),
    Case("root group", security(supplementalGroups=[0]), "spec.pod.securityContext"),
    Case("root fsGroup", security(fsGroup=0), "spec.pod.securityContext"),
    Case("may be root", security(runAsNonRoot=False), "spec.pod.securityContext"),
    Case("text as user", security(runAsUser="1000"), "spec.pod.securityContext"),
    Case("Unconfined", security(seccompProfile={"type": "Unconfined"}), "spec.pod.securityContext"),
    Case(
        "local profile",
        security(seccompProfile={"type": "Localhost", "localhostProfile": "x"}),
        "spec.pod.securityContext",
    ),
    Case("AppArmor off", security(appArmorProfile={"type": "Unconfined"}), "spec.pod.securityContext"),
    Case("SELinux", security(seLinuxOptions={"type": "spc_t"}), "spec.pod.securityContext"),
    Case("sysctls", security(sysctls=[{"name": "kernel.shm_rmid_forced", "value": "1"}]), "spec.pod.securityContext"),
    Case("unknown security", security(other=True), "spec.pod.securityContext"),
    Case("another image", engine(image="docker.io/evil/sglang:v0.5.23"), "spec.engine.image"),
    Case("image that begins alike", engine(image="localhost/sglang-cpu-evil:v1"), "spec.engine.image"),
    Case("registry with a port", engine(image="localhost/sglang-cpu:5000/evil"), "spec.engine.image"),
    *(
        Case(f"option {' '.join(words)}", args(*words), "spec.engine.args")
        for words in (
            (CODE,),
            ("--enable-custom-logit-processor",),
            ("--load-format=pt",),
            ("--tokenizer-path", "/mnt/x"),
            ("--lora-paths=a=/mnt/x",),
            ("--speculative-draft-model-path=evil/draft",),
            ("--sidecar=evil",),
            ("--tool-server=evil.example",),
            ("--otlp-traces-endpoint=evil.example:4317",),
            ("--custom-weight-loader=evil.load",),
            ("--allowed-media-domains=evil.example",),
            ("--kv-events-config={}",),
            ("--quantization=modelopt_fp8",),
            ("--quantization modelopt",),
            ("--quantization", "modelopt_mixed"),
            ("--quantization", "fp8"),
            ("--quantization=auto-round-int8",),
            ("--quantization=fp8 modelopt",),
            ("--quantization=fp8=",),
            ("--quantization",),
            ("--schedule-policy\t--x",),
            ("--schedule-policy=lpm", "-x"),
            ("--no-such-option",),
        )
    ),
    *(
        Case(f"variable {name}", variable(name, value="x"), "spec.engine.env")
        for name in (
            "NVIDIA_VISIBLE_DEVICES",
            "NVIDIA_DRIVER_CAPABILITIES",
            "CUDA_VISIBLE_DEVICES",
            "LD_PRELOAD",
            "LD_LIBRARY_PATH",
            # The test bed allows PYTHONPATH for a stand-in.
            "PYTHONHOME",
            "PYTHONSTARTUP",
            "PATH",
            "BASH_ENV",
            "HF_ENDPOINT",
            "NCCL_NET_PLUGIN",
            "SGLANG_NCCL_SO_PATH",
            "SGLANG_EXTERNAL_MODEL_PACKAGE",
            "HTTPS_PROXY",
            "HOME",
        )
    ),
    Case("variable from elsewhere", variable("HF_TOKEN", valueFrom={"fileKeyRef": {"path": "x"}}), "spec.engine.env"),
)

RATCHET: tuple[Case, ...] = (
    Case("kept volume", pod(volumes=[HOST], labels={"new": "label"}), before=pod(volumes=[HOST])),
    Case("kept beside a good one", pod(volumes=[{"name": "e", "emptyDir": {}}, HOST]), before=pod(volumes=[HOST])),
    Case(
        "kept account", pod(serviceAccountName="builder", labels={"a": "b"}), before=pod(serviceAccountName="builder")
    ),
    Case("kept user", security(runAsUser=0, fsGroup=5), before=security(runAsUser=0)),
    Case("kept toleration", toleration(operator="Exists"), before=toleration(operator="Exists")),
    Case(
        "kept quantization",
        engine(args=["--quantization", "modelopt_fp8"], startupSeconds=99),
        before=args("--quantization", "modelopt_fp8"),
    ),
    Case("another quantization", args("--quantization=modelopt"), "spec.engine.args", args("--quantization=fp8")),
    Case("kept option", engine(args=[CODE], startupSeconds=99), before=args(CODE)),
    *(
        Case(f"kept option {name}", engine(args=words, startupSeconds=99), before=engine(args=words))
        for name, words in {
            "with lines in its value": ["--json-model-override-args={\n}"],
            "with lines in a value of its own": ["--json-model-override-args", "{\n}"],
            "with a space before its value": ["--json-model-override-args= {}"],
            "with a line before its value": ["--json-model-override-args\n{}"],
            "and its value": ["--load-format", "auto"],
            "and its values": ["--lora-paths", "a=/mnt/a", "b=/mnt/b"],
        }.items()
    ),
    Case("kept variable", variable("LD_PRELOAD", value="x"), before=variable("LD_PRELOAD", value="x")),
    Case("kept image", engine(image="evil/x:v1", startupSeconds=99), before=engine(image="evil/x:v1")),
    Case("dropped", {}, before=pod(volumes=[HOST])),
    Case("kept mount", host_at("/opt/x", "/mnt/own"), before=host_at("/opt/x")),
    Case("a second place for a kept volume", host_at("/opt/x", "/mnt/x"), "spec.pod.volumeMounts", host_at("/opt/x")),
    Case("a first place for a kept volume", host_at("/mnt/x"), "spec.pod.volumeMounts", pod(volumes=[HOST])),
    Case(
        "a kept volume with more rights",
        pod(volumes=[HOST], volumeMounts=[{"name": "host", "mountPath": "/mnt/x"}]),
        "spec.pod.volumeMounts",
        pod(volumes=[HOST], volumeMounts=[{"name": "host", "mountPath": "/mnt/x", "readOnly": True}]),
    ),
    Case(
        "a kept volume beside one of its name",
        pod(volumes=[HOST, {"name": "host", "emptyDir": {}}], volumeMounts=[{"name": "host", "mountPath": "/mnt/x"}]),
        "spec.pod.volumeMounts",
        pod(volumes=[HOST]),
    ),
    Case("a second volume", pod(volumes=[HOST, HOST | {"name": "b"}]), "spec.pod.volumes", pod(volumes=[HOST])),
    Case("another path", volume(hostPath={"path": "/etc"}), "spec.pod.volumes", volume(hostPath={"path": "/"})),
    Case("another user value", security(fsGroup=0, runAsUser=0), "spec.pod.securityContext", security(runAsUser=0)),
    Case("another value", args("--load-format", "pt"), "spec.engine.args", args("--load-format", "auto")),
    Case("fewer values", args("--lora-paths"), "spec.engine.args", args("--lora-paths", "a=/mnt/a", "b=/mnt/b")),
    Case(
        "values as one value",
        args("--lora-paths\na=/mnt/a\nb=/mnt/b"),
        "spec.engine.args",
        args("--lora-paths", "a=/mnt/a", "b=/mnt/b"),
    ),
    Case("another variable", variable("LD_PRELOAD", value="y"), "spec.engine.env", variable("LD_PRELOAD", value="x")),
    Case("another image", engine(image="evil/y:v1"), "spec.engine.image", engine(image="evil/x:v1")),
)
"""Updates: what was there may stay, nothing may be added."""

MODELS = (
    "hf://Qwen/*",
    "hf://Qwen/Qwen3-8B@v*",
    "hf://own/chat@refs/pr/7",
    "modelscope://Qwen/Qwen3-*",
    "pvc://models/qwen/*",
    "pvc://models/one",
    "s3://weights/qwen/*",
    "oci://registry.example.com/models/*",
)
"""The list of models with which the next cases hold. Models without a source come from Hugging Face."""


def source(uri: str, revision: str | None = None, **spec: Any) -> Spec:
    return {"source": {"uri": uri, **({} if revision is None else {"revision": revision})}, **spec}


def adapters(*uris: str) -> Spec:
    named = [{"name": f"a{number}", "source": {"uri": uri}} for number, uri in enumerate(uris)]
    return {"model": "Qwen/Qwen3-8B", "adapters": named}


def adapter_at(uri: str, revision: str) -> Spec:
    return {"model": "Qwen/Qwen3-8B", "adapters": [{"name": "a", "source": {"uri": uri, "revision": revision}}]}


_CACHE = mount("/home/qwen/huggingface")

MODELS_ALLOWED: tuple[Case, ...] = (
    Case("a model by name", {"model": "Qwen/Qwen1.5-0.5B-Chat"}),
    Case("a repository", source("hf://Qwen/Qwen3-8B")),
    Case("another name for it", source("hf://Qwen/Qwen3-8B", model="chat")),
    Case("the main branch by name", source("hf://Qwen/Qwen3-0.6B", "main")),
    Case("a listed revision", source("hf://Qwen/Qwen3-8B", "v1.0")),
    Case("one revision", source("hf://own/chat", "refs/pr/7")),
    Case("another hub", source("modelscope://Qwen/Qwen3-8B", "master")),
    Case("a folder of a claim", source("pvc://models/qwen/7b@chat")),
    Case("one folder", source("pvc://models/one")),
    Case("a folder of a bucket", source("s3://weights/qwen/7b")),
    Case("an image by its tag", source("oci://registry.example.com/models/qwen:7b")),
    Case("a folder of an image by its digest", source(f"oci://registry.example.com/models/a/b@sha256:{'0' * 64}/m")),
    Case("files of a bucket by their digest", source("s3://weights/qwen/7b", "4f2c8b1d" * 5)),
    Case("a mount that hides no weights", mount("/mnt/models")),
    Case("an adapter of a listed folder", adapters("pvc://models/one", "pvc://models/qwen/lora")),
    Case("an adapter of a hub and one of a bucket", adapters("hf://Qwen/Qwen3-lora", "s3://weights/qwen/lora@1")),
    Case("an adapter at a listed revision", adapter_at("hf://Qwen/Qwen3-8B", "v1.0")),
    Case("an adapter at the main branch", adapter_at("hf://Qwen/Qwen3-lora", "main")),
    Case("an adapter by its digest", adapter_at("s3://weights/qwen/lora", "4f2c8b1d" * 5)),
)

MODELS_REFUSED: tuple[Case, ...] = (
    Case("another organisation by name", {"model": "evil/chat"}, "spec.model"),
    Case("an organisation that begins alike", {"model": "QwenEvil/chat"}, "spec.model"),
    Case("no organisation", {"model": "Qwen"}, "spec.model"),
    Case("a name that climbs", {"model": "Qwen/../evil/chat"}, "spec.model"),
    Case("a name that ends above", {"model": "Qwen/.."}, "spec.model"),
    Case("an encoded name", {"model": "Qwen/%2e%2e/evil"}, "spec.model"),
    Case("a name with more parts", {"model": "Qwen/chat/main"}, "spec.model"),
    Case("a name with a revision", {"model": "own/chat@refs/pr/7"}, "spec.model"),
    Case("a listed name from elsewhere", source("pvc://own/chat", model="Qwen/Qwen3-8B"), "spec.source"),
    Case("another bucket", source("s3://weights-evil/7b"), "spec.source"),
    Case(
        "a bucket of this name elsewhere",
        {"source": {"uri": "s3://weights/qwen/7b", "endpoint": "https://evil.example.com"}},
        "spec.source",
    ),
    Case("an image of another repository", source("oci://registry.example.com/models-evil/qwen:7b"), "spec.source"),
    Case("an image of another registry", source("oci://registry.example.com.evil/models/qwen:7b"), "spec.source"),
    Case("a registry in the path", source("oci://evil.example.com/a:b/registry.example.com/models/"), "spec.source"),
    Case("another case", source("hf://qwen/Qwen3-8B"), "spec.source"),
    Case("another organisation", source("hf://evil/chat"), "spec.source"),
    Case("an adapter from elsewhere", adapters("pvc://models/one", "pvc://own/lora"), "spec.adapters"),
    Case("an adapter of a folder that begins alike", adapters("pvc://models/ones"), "spec.adapters"),
    Case("an adapter of another organisation", adapters("hf://evil/lora"), "spec.adapters"),
    Case("an adapter by a proposal", adapter_at("hf://Qwen/Qwen3-0.6B", "refs/pr/7"), "spec.adapters"),
    Case("an adapter of another bucket", adapters("s3://weights-evil/lora"), "spec.adapters"),
    Case("a proposal", source("hf://Qwen/Qwen3-0.6B", "refs/pr/7"), "spec.source"),
    Case("a proposal of a listed revision", source("hf://Qwen/Qwen3-8B", "refs/pr/7"), "spec.source"),
    Case("a proposal by its commit", source("hf://Qwen/Qwen3-0.6B", "4f2c8b1d" * 5), "spec.source"),
    Case("a branch in capitals", source("hf://Qwen/Qwen3-0.6B", "Main"), "spec.source"),
    Case("the main branch of one revision", source("hf://own/chat"), "spec.source"),
    Case("a name in another hub", source("modelscope://Qwen/Qwen2.5-7B"), "spec.source"),
    Case("another claim", source("pvc://own/qwen/chat"), "spec.source"),
    Case("another folder", source("pvc://models/other"), "spec.source"),
    Case("the whole claim", source("pvc://models"), "spec.source"),
    Case("below one folder", source("pvc://models/one/two"), "spec.source"),
    Case("a folder beside", source("pvc://models//qwen/chat"), "spec.source"),
    Case("over the weights", mount("/models/source/chat"), "spec.pod.volumeMounts"),
    Case("over the weights by a detour", mount("/models//source/chat"), "spec.pod.volumeMounts"),
    Case("a cache of one's own", _CACHE, "spec.pod.volumeMounts"),
)

MODELS_RATCHET: tuple[Case, ...] = (
    Case("kept model", {"model": "evil/chat", **pod(labels={"a": "b"})}, before={"model": "evil/chat"}),
    Case("kept source", source("pvc://own/chat", contextTokens=2048), before=source("pvc://own/chat")),
    Case("kept source under another name", source("pvc://own/chat", model="x"), before=source("pvc://own/chat")),
    Case("kept revision", source("hf://evil/chat", "v1", contextTokens=2048), before=source("hf://evil/chat", "v1")),
    Case("kept model as a source", source("hf://evil/chat"), before={"model": "evil/chat"}),
    Case("kept mount", {**_CACHE, "contextTokens": 2048}, before=_CACHE),
    Case("a listed model for another", {"model": "Qwen/Qwen1.5-0.5B-Chat"}, before={"model": "evil/chat"}),
    Case("another folder", source("pvc://own/other"), "spec.source", source("pvc://own/chat")),
    Case("a kept adapter", adapters("pvc://models/one", "pvc://own/lora"), before=adapters("pvc://own/lora")),
    Case("another adapter", adapters("pvc://own/lora", "pvc://own/b"), "spec.adapters", adapters("pvc://own/lora")),
    Case("a kept revision of an adapter", adapter_at("hf://evil/a", "v1"), before=adapter_at("hf://evil/a", "v1")),
    Case(
        "another revision of an adapter",
        adapter_at("hf://evil/a", "v2"),
        "spec.adapters",
        adapter_at("hf://evil/a", "v1"),
    ),
    Case("another revision", source("hf://evil/chat", "v2"), "spec.source", source("hf://evil/chat", "v1")),
    Case("a first revision", source("hf://evil/chat", "v1"), "spec.source", {"model": "evil/chat"}),
    Case("another hub", source("modelscope://evil/chat"), "spec.source", {"model": "evil/chat"}),
    Case("another model", {"model": "evil/other"}, "spec.model", {"model": "evil/chat"}),
)
"""Updates of objects that were there before the list."""
