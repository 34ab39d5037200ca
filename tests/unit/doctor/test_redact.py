"""Hostile examples: no credential leaves, whatever place it hides in."""

from __future__ import annotations

import json
import time
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from qwen_operator.doctor import bundle, redact
from qwen_operator.doctor.types import Listed, Page
from tests.unit.doctor.facts import NOW, named

SECRET = "S3cr3tV4lu3xYz9"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4"
RANDOM = "kJ8sD2fL9qW3eR7tY1uI5oP0aS4dF6gH"

TEXTS = [
    f"--api-key={SECRET}",
    f"--api-key {SECRET}",
    f"--admin-api-key '{SECRET}'",
    f"--hf-token={SECRET}",
    f"server_args=ServerArgs(model_path='/m', api_key='{SECRET}', admin_api_key=\"{SECRET}\", tp_size=1)",
    f"Authorization: Bearer {SECRET}",
    f"authorization: Basic {SECRET}",
    f'{{"headers": {{"Authorization": "Bearer {SECRET}"}}}}',
    f"{{'authorization': b'Bearer {SECRET}'}}",
    f"[(b'authorization', b'Bearer {SECRET}')]",
    f"x-api-key: {SECRET}",
    f"X-Api-Key: {SECRET}",
    f"Cookie: session={SECRET}; other=1",
    f"https://user:{SECRET}@hub.example.com/x",
    f"https://{SECRET}@hub.example.com/x",
    f"redis://:{SECRET}@cache:6379/0",
    f"https://bucket.example.com/x?X-Amz-Signature={SECRET}&a=1",
    f"https://hub.example.com/x?token={SECRET}",
    f"GET /x?a=1&access_token={SECRET}&b=2",
    f"https://blob.example.com/c?sv=2022&sig={SECRET}",
    f"password: {SECRET}",
    f'"password": "{SECRET}"',
    f"DB_PASSWORD={SECRET}",
    f"PGPASSWORD={SECRET} psql",
    f"client_secret = {SECRET}",
    f"aws_secret_access_key={SECRET}",
    f"AccountKey={SECRET};EndpointSuffix=x",
    f"SharedAccessSignature={SECRET}",
    f"using token {JWT} now",
    "hf_" + "AbCd1234" * 4,
    "sk-proj-" + "AbCd1234" * 4,
    "ghp_" + "AbCd1234" * 4,
    "glpat-" + "AbCd1234" * 3,
    "xoxb-123456789012-" + "AbCd" * 4,
    "AKIAIOSFODNN7EXAMPLE",
    f"random {RANDOM} word",
    f"key:{RANDOM}",
    f"a={RANDOM}",
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    f"-----BEGIN PRIVATE KEY-----\\n{RANDOM}\\n-----END PRIVATE KEY-----",
    f"-----BEGIN RSA PRIVATE KEY-----\n{RANDOM}",
    f"\x1b[31mtoken\x1b[0m={SECRET}",
    f"api\u200b_key={SECRET}",
    f"passphrase:{SECRET}",
    f"PASSWORD=a,b;{SECRET}",
    f"token=a){SECRET}",
    f"https://hub.example.com/x?key={SECRET}",
    f"GET /v1?a=1&subscription-key={SECRET} HTTP/1.1",
]
PARTS = (SECRET, JWT, RANDOM, "AbCd1234", "IOSFODNN7", "0123456789abcdef", "AbCdAbCd")

KEPT = [
    "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8 on NVIDIA-H100-80GB-HBM3",
    "--mem-fraction-static=0.88 --max-total-tokens=8192 --tokenizer-path=/models/x --chunked-prefill-size=2048",
    "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "commit 0123456789abcdef0123456789abcdef01234567",
    "uid 01234567-89ab-cdef-0123-456789abcdef",
    "pod qwen-operator-7d9f8c6b5d-x7k2p on node gke-cluster-1-gpu-pool-8f7d6c5b-x1z2",
    "max_total_num_tokens=81920, token usage: 0.31, #queue-req: 0",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    "serving on http://10.0.0.7:8000 and https://hub.example.com/Qwen/Qwen3-8B",
    "registry.example.com/team/sglang:v0.5.23-cu129",
    "api_key=None",
    "Prefill batch, #new-seq: 1, #new-token: 512, #cached-token: 0, token usage: 0.00, eos_token_id=151645",
    "Successfully assigned team-a/one-0 to node-7, lastAssigned: 12, author: team-a",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_credential_in_a_text_is_hidden(text: str) -> None:
    shown = redact.line(text)
    assert not [part for part in PARTS if part in shown], shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("text", KEPT)
def test_what_support_needs_stays(text: str) -> None:
    assert redact.line(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "Receive: obj=GenerateReqInput(text='my diagnosis')",
        "Finish: obj=GenerateReqInput(rid='1'), out={'text': 'my diagnosis'}",
        '{"messages": [{"role": "user", "content": "my diagnosis"}]}',
        "prompt='my diagnosis'",
    ],
)
def test_prompts_in_a_log_are_left_out(text: str) -> None:
    assert "diagnosis" not in redact.log_line(text)


POD: dict[str, Any] = {
    "metadata": {
        "name": "p",
        "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": json.dumps({"env": SECRET}),
            "vault.example.com/agent": SECRET,
            "qwen-operator.dev/owner-uid": "01234567-89ab-cdef-0123-456789abcdef",
        },
        "managedFields": [{"fieldsV1": {SECRET: {}}}],
    },
    "spec": {
        "containers": [
            {
                "name": "engine",
                "command": ["python3", "--api-key", SECRET, "--tp-size", "2", f"--admin-api-key={SECRET}"],
                "args": ["--json-model-override-args", json.dumps({"api_key": SECRET})],
                "env": [
                    {"name": "PLAIN", "value": SECRET},
                    {"name": "SGLANG_API_KEY", "value": SECRET},
                    {"name": "SGLANG_TORCH_PROFILER_DIR", "value": "/tmp/profile"},
                    {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
                    SECRET,
                ],
                "startupProbe": {
                    "httpGet": {"path": "/x", "httpHeaders": [{"name": "Authorization", "value": SECRET}]}
                },
                "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", f"curl -H 'Authorization: {SECRET}' x"]}}},
            }
        ],
        "volumes": [
            {"name": "a", "csi": {"driver": "x", "volumeAttributes": {"mountOptions": SECRET}}},
            {"name": "b", "secret": {"secretName": "hub"}},
            {"name": "c", "flexVolume": {"options": {"password": SECRET}}},
        ],
        "imagePullSecrets": [{"name": "registry"}],
    },
    "data": {"x": SECRET},
    "stringData": {"x": SECRET},
}


def test_an_object_keeps_its_form_and_loses_its_credentials() -> None:
    shown = json.dumps(redact.manifest(POD))
    assert SECRET not in shown
    for kept in ("/tmp/profile", '"secretName": "hub"', '"name": "registry"', '"key": "token"', '"--tp-size", "2"',
                 "01234567-89ab-cdef-0123-456789abcdef", '"name": "SGLANG_API_KEY"'):  # fmt: skip
        assert kept in shown, kept


def facts(**changes: Any) -> bundle.ObjectFacts:
    condition = {"type": "Ready", "status": "False", "reason": "BadFlag", "message": f"--api-key={SECRET}\x1b[0m"}
    status = {
        "conditions": [condition],
        "plan": {"steps": ["1 x NVIDIA-L4", f"token={SECRET}"]},
        "failure": {"log": [f"api_key='{SECRET}'"]},
    }
    deployment = {**POD, "status": status}
    values: dict[str, Any] = {
        "now": NOW, "version": "0.1.0", "name": "one", "namespace": "team-a", "deployment": Listed([deployment]),
        "pods": Listed([{**POD, "status": {"phase": "Running"}}]),
        "events": Listed([{"metadata": {}, "reason": "Failed", "message": f"Bearer {SECRET}", "count": 3}]),
        "revisions": Listed([named("one-1234abcd", revision=1)]),
        "nodes": Listed(problem="you may not get nodes"),
        "logs": {"log of p/engine": Page(f"line\napi_key='{SECRET}'\nReceive: obj=x diagnosis\n", 200)},
        "operator_log": Page(f'{{"object": "team-a/one", "error": "token={SECRET}"}}\n{{"object": "team-b/two"}}'
            f'\n{{"object": "their-team-a/one", "x": "foreign"}}', 200),
    }  # fmt: skip
    return bundle.ObjectFacts(**(values | changes))


def test_the_text_for_support() -> None:
    shown = bundle.text(facts())
    assert SECRET not in shown
    assert "diagnosis" not in shown
    assert "\x1b" not in shown
    assert "team-b/two" not in shown, "another team's lines are not its business"
    assert "foreign" not in shown
    for part in ("Ready False BadFlag", "1 x NVIDIA-L4", "one-1234abcd revision 1", "not read: you may not get nodes",
                 "Failed", "x3", "== log of p/engine ==", "phase: Running"):  # fmt: skip
        assert part in shown, part


def test_a_private_key_over_several_lines_is_hidden() -> None:
    key = f"-----BEGIN PRIVATE KEY-----\n{RANDOM * 2}\nshortEnd==\n-----END PRIVATE KEY-----"
    shown = bundle.text(facts(logs={"log": Page(f"before\n{key}\nafter", 200)}))
    assert "shortEnd" not in shown
    assert "before" in shown
    assert "after" in shown


def test_its_size_is_bounded() -> None:
    long = Page("a line of a log " * 100 + "\n" + ("a line of a log " * 100 + "\n") * 2000, 200)
    shown = bundle.text(facts(logs={f"log {number}": long for number in range(30)}))
    assert len(shown.encode()) <= bundle.MOST_BYTES
    assert "and all after it are left out" in shown


SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=20,
)


@given(SHAPES)
def test_objects_of_any_form_can_be_shown(shape: Any) -> None:
    item = {"metadata": {"name": "x"}, "spec": shape, "status": shape, "env": shape, "annotations": shape}
    listed = Listed([item])
    bundle.text(facts(deployment=listed, pods=listed, events=listed, revisions=listed, nodes=listed))


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=200))
def test_every_text_becomes_one_printable_line(text: str) -> None:
    shown = redact.line(text)
    assert "\n" not in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("part", ["a", "token", "x.", "eyJ-", "--", "://", "a=", "'", "token='", "-----BEGIN A-----"])
def test_no_text_takes_long(part: str) -> None:
    start = time.process_time()
    redact.log_line(part * (1_000_000 // len(part)))
    assert time.process_time() - start < 1.0
