"""Clients that people use, from their registries, against the real gateway and engine.

Each client is installed in an environment of its own from the lock files in tests/clients, and its script does what
tests/clients/python/checks.py describes. `make test-clients` prints the table of docs/clients.md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Gateway
from tests.qd import qd, wait_condition, wait_ready
from tests.testbed.cache import cached
from tests.testbed.kubectl import Kubectl, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
CLIENTS = Path(__file__).parents[1] / "clients"
LOCKS, PYTHON, NODE = CLIENTS / "locks", CLIENTS / "python", CLIENTS / "node"
MODEL = "clients-model"
SLEEPER = "clients-sleeper"
RUN_SECONDS = 600

# What does not work, and why. docs/clients.md explains each.
KNOWN: dict[tuple[str, str], str] = {}


@dataclass(frozen=True, slots=True)
class Client:
    """A client and the command that runs its script."""

    name: str
    command: tuple[str, ...]
    folder: Path


@pytest.fixture(scope="module")
def served(kubectl: Kubectl, claim_space: str, gateway: Gateway) -> Iterator[str]:
    """The model that all clients ask."""
    source = {"uri": "pvc://models/tiny-qwen2"}
    kubectl.apply(qd(claim_space, "clients", model=MODEL, source=source))
    wait_ready(kubectl, claim_space, "clients", timeout=300)
    wait_for(f"{MODEL} is routed", lambda: gateway.chat(MODEL, max_tokens=1).status_code == 200, 20)
    yield MODEL
    kubectl.run("delete", "qd", "clients", "-n", claim_space)


def python_client(script: str) -> Client:
    lock = LOCKS / f"{script}.txt"

    def build(folder: Path) -> None:
        # A relocatable environment: the cache renames the folder after the build.
        uv = str(Path(sys.executable).with_name("uv"))
        environment = str(folder / "venv")
        subprocess.run([uv, "venv", "--quiet", "--relocatable", "--python", sys.executable, environment], check=True)
        install = [uv, "pip", "install", "--quiet", "--require-hashes", "--python", environment, "-r", str(lock)]
        subprocess.run(install, check=True)

    home = cached("client", [lock.read_bytes(), sys.version.encode()], build)
    return Client(script, (str(home / "venv/bin/python"), str(PYTHON / f"{script}.py")), PYTHON)


def node_client(script: str) -> Client:
    package, lock = NODE / "package.json", NODE / "package-lock.json"
    scripts = sorted(NODE.glob("*.mjs"))

    def build(folder: Path) -> None:
        for file in (package, lock, *scripts):
            (folder / file.name).write_bytes(file.read_bytes())
        subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=folder, check=True)

    inputs = [file.read_bytes() for file in (package, lock, *scripts)]
    home = cached("client-node", inputs, build)
    return Client(f"{script} (node)", ("node", f"{script}.mjs"), home)


SCRIPTS = (
    *((python_client, path.stem) for path in sorted(PYTHON.glob("*.py")) if path.stem != "checks"),
    *((node_client, path.stem) for path in sorted(NODE.glob("*.mjs")) if path.stem != "checks"),
)


def results_of(client: Client, gateway: Gateway, model: str, **more: str) -> list[dict[str, Any]]:
    """What the client's script printed about each check. `more`: environment variables."""
    settings = {"QWEN_CLIENT_URL": gateway.url, "QWEN_CLIENT_KEY": gateway.key, "QWEN_CLIENT_MODEL": model, **more}
    # No other setting of this machine may reach a client: neither a proxy nor a key of its own.
    plain = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run(
        client.command,
        cwd=client.folder,
        env={**plain, **settings, "PYTHONPATH": str(PYTHON)},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    for result in results:
        print(f"| {client.name} | {result['check']} | {'yes' if result['ok'] else 'no'} | {result['note']} |")
    print(done.stderr[-4000:])
    assert results
    return results


@pytest.mark.parametrize(("install", "script"), SCRIPTS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_client_works(install: object, script: str, gateway: Gateway, served: str) -> None:
    client = python_client(script) if install is python_client else node_client(script)
    results = results_of(client, gateway, served)
    failed = {result["check"]: result["note"] for result in results if not result["ok"]}
    assert failed.keys() == {check for name, check in KNOWN if name == client.name}


EVALUATION = Path(__file__).parents[2] / "docs/examples/evaluation/job.yaml"
TABLE_ROW = re.compile(r"\|(small_\w+) *\| *1\|\w+ *\| *0\|exact_match\|↑ *\|(\d\.\d{4})\|")


def test_the_example_of_an_evaluation_prints_its_table(gateway: Gateway, served: str, tmp_path: Path) -> None:
    files, job = yaml.safe_load_all(EVALUATION.read_text())
    for name, text in files["data"].items():
        (tmp_path / name).write_text(text)
    [container] = job["spec"]["template"]["spec"]["containers"]
    settings = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
    settings |= {"MODEL": served, "GATEWAY": gateway.url, "OPENAI_API_KEY": gateway.key, "HOME": str(tmp_path)}
    settings |= {"TASK_FOLDER": str(tmp_path), "RESULTS": str(tmp_path / "results")}
    client = python_client("lm_eval_harness")
    path = f"{Path(client.command[0]).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", str(tmp_path / "evaluate.sh")],
        env={**settings, "PATH": path},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    print(done.stdout[-4000:], done.stderr[-4000:])
    assert done.returncode == 0
    values = {row[1]: float(row[2]) for row in TABLE_ROW.finditer(done.stdout)}
    assert values.keys() == {"small_arithmetic", "small_choices"}
    assert all(value < 0.5 for value in values.values()), "a model of 0.5 MB knows nothing"


@pytest.fixture(scope="module")
def sleeper(kubectl: Kubectl, claim_space: str) -> Iterator[str]:
    """The namespace of the QwenDeployment `sleeper`, which sleeps after half a minute."""
    scaling = {"minReplicas": 0, "maxReplicas": 1, "stabilizationSeconds": 0, "idleSeconds": 30}
    kubectl.apply(qd(claim_space, "sleeper", model=SLEEPER, source={"uri": "pvc://models/tiny-qwen2"}, scaling=scaling))
    yield claim_space
    kubectl.run("delete", "qd", "sleeper", "-n", claim_space)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("install", "script"),
    [(python_client, "openai_sdk"), (python_client, "langchain_chat"), (node_client, "openai_sdk")],
)
def test_a_client_wakes_a_model_with_its_own_patience(
    install: Callable[[str], Client], script: str, kubectl: Kubectl, gateway: Gateway, sleeper: str
) -> None:
    wait_condition(kubectl, sleeper, "sleeper", ("Ready", "True", "Asleep"), 300)
    wait_for("the model is listed", lambda: SLEEPER in gateway.client().get("/v1/models").text, 20)
    results = results_of(install(script), gateway, SLEEPER, QWEN_CLIENT_DEFAULTS="1")
    assert [result["check"] for result in results if not result["ok"]] == []
