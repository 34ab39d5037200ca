"""`make demo`: from a bare machine to a chat answer of a model that the operator deployed.

Every step prints the command as a user would type it, and its output. Without KUBECONFIG, the cluster is the test bed
and the model is a tiny Qwen2 checkpoint that is made on this machine. With KUBECONFIG, the cluster is the user's own,
the model is the smallest published one, and the user must name the operator's image (IMAGE=registry/repository:tag).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import httpx
import openai
import yaml
from openai.types.chat import ChatCompletionMessageParam

from qwen_operator.objects import mapping
from tests.testbed.bed import bring_up, roll_by_content
from tests.testbed.cache import StepFailed
from tests.testbed.kubectl import Manifest, condition
from tests.testbed.volumes import claim_manifests

CHART = "charts/qwen-operator"
RELEASE, SYSTEM, SPACE = "qwen", "qwen-system", "qwen-demo"
MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Tell me something about large language models."},
]
OWN_CLUSTER_MODEL = "Qwen/Qwen1.5-0.5B-Chat"
TESTBED_MODEL = "tiny-qwen2"


@dataclass(frozen=True, slots=True)
class Setting:
    """Where the demo runs and what it deploys."""

    manifest: Manifest
    helm_arguments: tuple[str, ...]
    environment: Mapping[str, str]
    before: tuple[Manifest, ...] = ()
    ready_seconds: int = 600
    open_gateway: bool = False
    """Whether to show the gateway without keys. False for the user's own cluster."""
    cleanup: tuple[str, ...] = field(default=())


class Failed(Exception):
    """A step of the demo failed. The text is for the user of `make demo`."""


def deployment(model: str, uri: str | None) -> Manifest:
    spec: Manifest = {"model": model}
    if uri:
        spec["source"] = {"uri": uri}
    name = model.rpartition("/")[2].lower()
    return {
        "apiVersion": "qwen-operator.dev/v1alpha1",
        "kind": "QwenDeployment",
        "metadata": {"name": name, "namespace": SPACE},
        "spec": spec,
    }


def own_cluster() -> Setting:
    image = os.environ.get("IMAGE", "")
    if not image:
        raise Failed(
            "KUBECONFIG names your own cluster: also set IMAGE=registry/repository:tag to an image of the operator"
        )
    for tool in ("kubectl", "helm"):
        if not shutil.which(tool):
            raise Failed(f"{tool} is not on PATH")
    repository, _, tag = image.rpartition(":")
    if not repository or "/" in tag:
        raise Failed(f"IMAGE is {image}: it must be repository:tag")
    return Setting(
        manifest=deployment(OWN_CLUSTER_MODEL, None),
        helm_arguments=("--set-string", f"image.repository={repository},image.tag={tag}"),
        environment=os.environ.copy(),
        ready_seconds=1800,
        cleanup=(f"kubectl delete namespace {SPACE}", f"helm uninstall {RELEASE} -n {SYSTEM}"),
    )


def testbed() -> Setting:
    say("Test bed: a real Kubernetes on this machine (the first start builds its parts, which takes a while)")
    cluster = bring_up()
    return Setting(
        manifest=deployment(TESTBED_MODEL, "pvc://models/tiny-qwen2"),
        before=tuple(claim_manifests("models", SPACE, cluster.models_dir)),
        helm_arguments=("-f", "tests/testbed/values.yaml", *roll_by_content()),
        environment={**os.environ, **cluster.environment()},
        open_gateway=True,
        cleanup=("make testbed-down      # removes the whole cluster; the cache of built parts stays",),
    )


def say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def show(setting: Setting, *command: str, stdin: str | None = None, quiet: bool = False, key: str = "") -> str:
    """Print a command, run it, and print its output. Raises Failed with its output and errors.

    key: a secret in the command, printed as $KEY.
    """
    typed = shlex.join(command)
    if key:
        typed = typed.replace(f"'Authorization: Bearer {key}'", '"Authorization: Bearer $KEY"')
    print(f"$ {typed} <<'EOF'\n{stdin}EOF" if stdin else f"$ {typed}", flush=True)
    done = subprocess.run(command, input=stdin, env=setting.environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{typed}\n{done.stdout}{done.stderr}")
    if not quiet:
        print(done.stdout.rstrip(), flush=True)
    return done.stdout


def install(setting: Setting, *extra: str) -> None:
    show(
        setting, "helm", "upgrade", "--install", RELEASE, CHART, "-n", SYSTEM, "--create-namespace",
        *setting.helm_arguments, *extra, "--wait", "--timeout", "5m", quiet=True,
    )  # fmt: skip


def deploy(setting: Setting) -> str:
    """Apply the manifest and follow its status until it is Ready. Returns the object's name."""
    name = str(setting.manifest["metadata"]["name"])
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE, "labels": labels}}
    quiet_apply(setting, namespace, *setting.before)
    show(setting, "kubectl", "apply", "-f", "-", stdin=yaml.safe_dump(setting.manifest, sort_keys=False))
    follow(setting, name)
    show(setting, "kubectl", "wait", "--for=condition=Ready", f"qd/{name}", "-n", SPACE, "--timeout=30s")
    show(setting, "kubectl", "get", "qd", "-n", SPACE)
    return name


def quiet_apply(setting: Setting, *manifests: Manifest) -> None:
    subprocess.run(
        ["kubectl", "apply", "-f", "-"], input=yaml.safe_dump_all(manifests), env=setting.environment,
        text=True, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def follow(setting: Setting, name: str) -> None:
    """Print each change of the status line until Ready. Raises Failed if it stalls or takes too long."""
    start, last = time.monotonic(), ""
    while True:
        command = ["kubectl", "get", "qd", name, "-n", SPACE, "-o", "json"]
        text = subprocess.run(command, env=setting.environment, capture_output=True, text=True, check=True).stdout
        obj = json.loads(text)
        summary = mapping(obj, "status", "summary")
        line = f"{summary.get('status', 'Pending')}: {summary.get('message', 'the operator has not seen it yet')}"
        if line != last:
            print(f"  {time.monotonic() - start:5.0f} s  {line}", flush=True)
            last = line
        if condition(obj, "Ready").get("status") == "True":
            return
        if condition(obj, "Stalled").get("status") == "True" or time.monotonic() - start > setting.ready_seconds:
            raise Failed(f"qd/{name} is not Ready: {line}\nlook at: kubectl describe qd {name} -n {SPACE}")
        time.sleep(1)


@contextlib.contextmanager
def forwarded(setting: Setting) -> Iterator[str]:
    """Forwards a free local port to the gateway's Service. Yields the base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["kubectl", "port-forward", "-n", SYSTEM, "svc/qwen-gateway", f"{port}:80"]
    print(f"$ {shlex.join(command)} &", flush=True)
    process = subprocess.Popen(command, env=dict(setting.environment), stdout=subprocess.DEVNULL)
    base = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"{base}/liveness", timeout=2)
                break
            time.sleep(0.2)
        yield base
    finally:
        process.terminate()
        process.wait(10)


def chat(setting: Setting, base: str, model: str, key: str | None) -> str:
    """The chat request with curl. Returns the answer's text."""
    body = json.dumps({"model": model, "messages": MESSAGES})
    auth = ["-H", f"Authorization: Bearer {key}"] if key else []
    text = show(
        setting, "curl", "--fail-with-body", "-sS", f"{base}/v1/chat/completions",
        "-H", "Content-Type: application/json", *auth, "-d", body, key=key or "",
    )  # fmt: skip
    return str(json.loads(text)["choices"][0]["message"]["content"])


def chat_streaming(base: str, model: str, key: str) -> str:
    """The same request with the official client, streamed. Returns the text."""
    print(f"$ python3   # openai.OpenAI(base_url='{base}/v1', api_key=KEY).chat.completions.create(..., stream=True)")
    client = openai.OpenAI(base_url=f"{base}/v1", api_key=key)
    pieces: list[str] = []
    stream = client.chat.completions.create(model=model, messages=MESSAGES, stream=True, max_tokens=48)
    for chunk in stream:
        piece = chunk.choices[0].delta.content if chunk.choices else None
        if piece:
            pieces.append(piece)
            print(piece, end="", flush=True)
    print(flush=True)
    return "".join(pieces)


def read_key(setting: Setting) -> str:
    text = show(
        setting,
        "kubectl",
        "get",
        "secret",
        "qwen-gateway-keys",
        "-n",
        SYSTEM,
        "-o",
        "jsonpath={.data.default}",
        quiet=True,
    )
    return base64.b64decode(text).decode()


def print_summary(setting: Setting, name: str, seconds: float) -> None:
    say(f"Done after {seconds:.0f} s. What happened")
    print(
        "The operator read the checkpoint's files, planned GPUs and options, and ran unmodified SGLang in a pod. The\n"
        "gateway found the pod and routed the requests to it. The model is tiny and knows a few sentences by heart.\n"
        "Everything else is real."
        if "source" in setting.manifest["spec"]
        else "The operator planned GPUs and options, and ran unmodified SGLang in a pod.\n"
        "The gateway found the pod and routed the requests to it."
    )
    say("Look around")
    if "KUBECONFIG" not in os.environ:
        tools = setting.environment["PATH"].partition(":")[0]
        print(f"export KUBECONFIG={setting.environment['KUBECONFIG']} PATH={tools}:$PATH")
    for line in ("get qd -o wide", f"describe qd {name}", "get pods -o wide", "explain qd.spec"):
        print(f"kubectl {line}" + ("" if line.startswith("explain") else f" -n {SPACE}"))
    say("Clean up")
    print("\n".join(setting.cleanup))


def run() -> None:
    start = time.monotonic()
    setting = own_cluster() if os.environ.get("KUBECONFIG") else testbed()
    say("Install the chart: CRD, operator and gateway")
    install(setting)
    say("Deploy a model")
    name = deploy(setting)
    model = str(setting.manifest["spec"]["model"])
    say("Ask it, with the API key that the operator made")
    key = read_key(setting)
    with forwarded(setting) as base:
        answer = chat(setting, base, model, key)
        say("The same with the official OpenAI client, streaming")
        streamed = chat_streaming(base, model, key)
    if setting.open_gateway:
        say("Switch the keys off and ask again, without one")
        install(setting, "--set", "gateway.auth=none")
        with forwarded(setting) as base:
            answer = chat(setting, base, model, None)
    if not answer or not streamed:
        raise Failed("the model gave an empty answer")
    print(f"\nThe answer: {answer}")
    print_summary(setting, name, time.monotonic() - start)


def main() -> int:
    try:
        run()
    except (Failed, StepFailed, subprocess.CalledProcessError) as error:
        print(f"\nmake demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
