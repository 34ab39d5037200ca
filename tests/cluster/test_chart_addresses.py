"""Addresses outside the cluster: what the chart renders, and a real nginx before the real gateway with these limits."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp.test_utils import unused_port

from qwen_operator.gateway.nginx import HEALTH
from tests.cluster.chart import VALUES, Manifest, of_kind, one, refused, render
from tests.unit.gateway.proxied import Pod, gateway, until
from tests.unit.gateway.test_hold import held, unready, waits

pytestmark = pytest.mark.cluster

NGINX, ALB = "nginx.ingress.kubernetes.io", "alb.ingress.kubernetes.io"
ATTRIBUTES = f"{ALB}/load-balancer-attributes"
SHORT = {"limits": {"bodyTimeoutSeconds": 3, "requestTimeoutSeconds": 7}, "hold": {"maxSeconds": 0}}
LONG = {"limits": {"bodyTimeoutSeconds": 86400, "requestTimeoutSeconds": 86400}, "hold": {"maxSeconds": 86400}}
PARENT: Manifest = {"name": "public", "namespace": "gateways", "sectionName": "https"}


def ingress(more: Mapping[str, Any] | None = None, **values: Any) -> Manifest:
    """The Ingress with these values of gateway.ingress; `more` is for the rest of gateway."""
    return one(render({"gateway": {**(more or {}), "ingress": {"enabled": True, **values}}}), "Ingress", "qwen-gateway")


def route(more: Mapping[str, Any] | None = None, **values: Any) -> Manifest:
    """As `ingress`: the HTTPRoute."""
    given = {"enabled": True, "parentRefs": [PARENT], **values}
    return one(render({"gateway": {**(more or {}), "httpRoute": given}}), "HTTPRoute", "qwen-gateway")


@pytest.mark.parametrize(("more", "seconds"), [({}, 60 + 540 + 1800 + 10), (SHORT, 3 + 0 + 7 + 10)])
def test_ingress_nginx_gets_its_limits_from_the_gateway_s(more: Manifest, seconds: int) -> None:
    """A proxy waits for the whole upload, the wait for a replica and the answer, and the gateway refuses first."""
    assert ingress(more, controller="ingress-nginx")["metadata"]["annotations"] == {
        f"{NGINX}/proxy-read-timeout": str(seconds),
        f"{NGINX}/proxy-send-timeout": str(seconds),
        f"{NGINX}/proxy-body-size": str(32 * 1024 * 1024),
        f"{NGINX}/proxy-buffering": "off",
        f"{NGINX}/proxy-request-buffering": "off",
    }


def test_an_alb_gets_its_limits_and_a_health_check_that_is_answered_without_a_key() -> None:
    annotations = ingress(controller="alb")["metadata"]["annotations"]
    assert annotations == {
        ATTRIBUTES: "idle_timeout.timeout_seconds=2410",
        f"{ALB}/target-type": "ip",
        f"{ALB}/healthcheck-path": "/health",
    }
    assert annotations[f"{ALB}/healthcheck-path"] in HEALTH


@pytest.mark.parametrize(
    ("own", "together"),
    [
        ("deletion_protection.enabled=true", "deletion_protection.enabled=true,idle_timeout.timeout_seconds=2410"),
        ("idle_timeout.timeout_seconds=4000", "idle_timeout.timeout_seconds=4000"),
        ("routing.http2.enabled=true, ", "routing.http2.enabled=true,idle_timeout.timeout_seconds=2410"),
    ],
)
def test_other_attributes_of_an_alb_keep_the_time_limit(own: str, together: str) -> None:
    assert ingress(controller="alb", annotations={ATTRIBUTES: own})["metadata"]["annotations"][ATTRIBUTES] == together


def test_the_user_s_annotations_win_and_are_all_for_an_unknown_controller() -> None:
    own = {f"{NGINX}/proxy-read-timeout": "90", "team": "ml"}
    annotations = ingress(controller="ingress-nginx", annotations=own)["metadata"]["annotations"]
    assert own.items() <= annotations.items()
    assert annotations[f"{NGINX}/proxy-buffering"] == "off"
    assert ingress(annotations=own)["metadata"]["annotations"] == own
    assert "annotations" not in ingress()["metadata"]


def test_hosts_and_tls() -> None:
    hosts = ["llm.example.com", "*.llm.example.com"]
    found = ingress(hosts=hosts, className="public", tls={"secretName": "certificate"}, path="/v1")["spec"]
    assert found["ingressClassName"] == "public"
    assert found["tls"] == [{"secretName": "certificate", "hosts": hosts}]
    assert [rule["host"] for rule in found["rules"]] == hosts
    assert {path["path"] for rule in found["rules"] for path in rule["http"]["paths"]} == {"/v1"}
    [rule] = ingress()["spec"].pop("rules")
    assert rule.keys() == {"http"}
    assert ingress()["spec"].keys() == {"rules"}


def test_both_lead_to_the_gateway_s_service() -> None:
    values = VALUES["ingress"]["gateway"] | VALUES["routed"]["gateway"] | {"service": {"port": 8080}}
    manifests = render({"gateway": values})
    service = one(manifests, "Service", "qwen-gateway")
    place = {"name": service["metadata"]["name"], "port": service["spec"]["ports"][0]["port"]}
    [rule] = one(manifests, "Ingress", "qwen-gateway")["spec"]["rules"]
    [path] = rule["http"]["paths"]
    assert path["backend"] == {"service": {"name": place["name"], "port": {"number": place["port"]}}}
    assert path["pathType"] == "Prefix"
    [rule] = one(manifests, "HTTPRoute", "qwen-gateway")["spec"]["rules"]
    assert rule["backendRefs"] == [place]


@pytest.mark.parametrize(("more", "seconds"), [({}, 2410), (SHORT, 20), (LONG, 3 * 86400 + 10)])
def test_a_route_gets_its_time_limits_from_the_gateway_s(more: Manifest, seconds: int) -> None:
    [rule] = route(more)["spec"]["rules"]
    assert rule["timeouts"]["request"] == rule["timeouts"]["backendRequest"]
    # GEP-2257: a number has at most five digits.
    assert re.fullmatch(r"([0-9]{1,5}(h|m|s|ms)){1,4}", rule["timeouts"]["request"])
    minutes, rest = rule["timeouts"]["request"].removesuffix("s").split("m")
    assert 60 * int(minutes) + int(rest) == seconds


def test_a_route_names_its_gateways_and_hosts() -> None:
    found = route(hostnames=["llm.example.com"], annotations={"team": "ml"}, timeouts=False)
    assert found["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert found["metadata"]["annotations"] == {"team": "ml"}
    assert found["spec"]["parentRefs"] == [PARENT]
    assert found["spec"]["hostnames"] == ["llm.example.com"]
    assert "timeouts" not in found["spec"]["rules"][0]
    assert "hostnames" not in route()["spec"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"httpRoute": {"enabled": True}}, "gateway.httpRoute.parentRefs is empty, so no Gateway would serve"),
        ({"httpRoute": {"enabled": True, "parentRefs": [{"namespace": "a"}]}}, "/gateway/httpRoute/parentRefs/0"),
        ({"ingress": {"enabled": True, "tls": {"secretName": "a"}}}, "a certificate belongs to host names"),
        (
            {"ingress": {"enabled": True, "controller": "alb", "hosts": ["a.b"], "tls": {"secretName": "mine"}}},
            "gateway.ingress.tls.secretName is mine and gateway.ingress.controller is alb, but an ALB reads no Secret",
        ),
        (
            {"ingress": {"enabled": True, "controller": "alb"}, "limits": {"requestTimeoutSeconds": 3600}},
            "which waits at most 4000 s, but a request may take 4210 s",
        ),
        (
            {"limits": {"bodyBytes": 104857600}},
            "gateway.limits.bodyBytes is 104857600 and gateway.limits.bufferedBytes is 402653184, but a tenant may use "
            "half of bufferedBytes, and a request for an adapter counts twice: set bufferedBytes to 419430400 or more",
        ),
        ({"ingress": {"controller": "nginx"}}, "/gateway/ingress/controller"),
        ({"ingress": {"hosts": ["https://a"]}}, "/gateway/ingress/hosts/0"),
        ({"ingress": {"path": "/llm"}}, "/gateway/ingress/path"),
    ],
)
def test_contradictions_are_refused_in_a_sentence(values: Manifest, words: str) -> None:
    assert words in refused({"gateway": values})


def test_an_alb_may_get_another_time_limit_from_the_user() -> None:
    own = {ATTRIBUTES: "idle_timeout.timeout_seconds=4000"}
    found = ingress({"limits": {"requestTimeoutSeconds": 3600}}, controller="alb", annotations=own)
    assert found["metadata"]["annotations"].items() >= own.items()


@pytest.mark.parametrize(("name", "kind"), [("ingress", "Ingress"), ("routed", "HTTPRoute")])
def test_one_does_not_bring_the_other(name: str, kind: str) -> None:
    assert [m["kind"] for m in of_kind(render(VALUES[name]), "Ingress", "HTTPRoute")] == [kind]


# The same limits for the gateway and, through the chart, for the proxy before it.
BODY_SECONDS, BODY_BYTES, HOLD_SECONDS = 2, 4 * 1024 * 1024, 75
LIMITS = {
    "QWEN_GATEWAY_BODY_TIMEOUT_SECONDS": str(BODY_SECONDS),
    "QWEN_GATEWAY_MAX_BODY_BYTES": str(BODY_BYTES),
    "QWEN_GATEWAY_HOLD_SECONDS": str(HOLD_SECONDS),
}


def directive(annotation: str, value: str) -> str:
    """What ingress-nginx writes into the location for one of the annotations."""
    name = annotation.removeprefix(f"{NGINX}/").replace("-", "_")
    if name == "proxy_body_size":
        return f"client_max_body_size {value};"
    return f"{name} {value}{'s' if name.endswith('_timeout') else ''};"


def answers(address: str) -> bool:
    try:
        return not httpx.get(f"{address}/health").is_error
    except httpx.TransportError:
        return False


@contextmanager
def before(pod: Pod, folder: Path, annotations: Mapping[str, str]) -> Iterator[str]:
    """An nginx with the directives of the annotations before the gateway; yields its address."""
    port = unused_port()
    lines = "\n".join(directive(name, value) for name, value in annotations.items())
    paths = "\n".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "front.conf").write_text(f"""\
daemon off;
pid {folder}/front.pid;
error_log stderr error;
events {{}}
http {{
access_log off;
{paths}
server {{
listen 127.0.0.1:{port};
location / {{
proxy_http_version 1.1;
proxy_set_header Connection "";
{lines}
proxy_pass {pod.url};
}}
}}
}}
""")
    command = ["nginx", "-c", str(folder / "front.conf"), "-e", "stderr"]
    # As root, nginx gives its worker another user, who cannot write to the folder.
    with subprocess.Popen([*command, *(["-g", "user root;"] if os.geteuid() == 0 else [])]) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            until(lambda: answers(address), "nginx passes requests on")
            yield address
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    with gateway(tmp_path_factory.mktemp("gateway"), **LIMITS) as running:
        yield running


@pytest.fixture(scope="module")
def front(pod: Pod, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """The gateway behind the chart's Ingress."""
    limits = {"bodyTimeoutSeconds": BODY_SECONDS, "bodyBytes": BODY_BYTES}
    more = {"limits": limits, "hold": {"maxSeconds": HOLD_SECONDS}}
    annotations = ingress(more, controller="ingress-nginx")["metadata"]["annotations"]
    with before(pod, tmp_path_factory.mktemp("front"), annotations) as address:
        yield Pod(pod.folder, address, pod.metrics_url, pod.environ)


def test_a_stream_passes_piece_by_piece(front: Pod) -> None:
    body = {"model": "open", "messages": [{"role": "user", "content": "300"}], "stream": True, "max_tokens": 5}
    with front.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        times = [time.monotonic() for line in answer.iter_lines() if line.startswith("data: {")]
    assert len(times) == 5
    assert times[-1] - times[0] > 0.9


def test_bodies_pass_up_to_the_gateway_s_limit(front: Pod) -> None:
    assert front.chat("open", user="x" * (BODY_BYTES - 1024)).status_code == 200
    assert front.chat("open", user="x" * BODY_BYTES).status_code == 413


def test_a_refusal_comes_before_the_body(front: Pod) -> None:
    refusal = front.chat("open", "wrong", user="x" * (BODY_BYTES - 1024))
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (401, "invalid_api_key")


def test_the_gateway_ends_a_slow_body(front: Pod) -> None:
    """With buffered requests the gateway would not see it until it is complete."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer key-all\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", int(front.url.rsplit(":", 1)[1])), 10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_a_request_waits_longer_than_nginx_does_by_itself(front: Pod) -> None:
    unready(front)
    body = {"model": "open", "messages": [{"role": "user", "content": "0"}]}
    with front.client() as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.post, "/v1/chat/completions", json=body, timeout=120)
        until(lambda: held(front) == 1, "the request waits")
        time.sleep(65)
        waits(front)
        assert asked.result().status_code == 200
