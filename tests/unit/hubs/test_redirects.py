"""Which redirects of a hub are followed."""

from __future__ import annotations

from functools import partial

import httpx
import pytest

from qwen_operator.checkpoints.hubs import HubError
from qwen_operator.hubs.client import fetch
from qwen_operator.hubs.redirects import reached_fault, redirect_fault


@pytest.mark.parametrize(
    ("base", "target", "says"),
    [
        ("https://hub.test", "http://hub.test/x", "'hub.test' without TLS, which is not allowed"),
        ("https://hub.test", "ftp://hub.test/x", "an address that is not http or https, which is not allowed"),
        ("https://hub.test", "https://hub.test:99999/x", "an address that is not http or https"),
        ("https://hub.test", "https://a:b@cdn.test/x", "'cdn.test' with credentials, which is not allowed"),
        ("http://hub.test", "http://10.0.0.1/x", "'10.0.0.1', which is not allowed: it is a host inside the network"),
        ("http://hub.test", "http://prometheus.monitoring.svc/x", "it is a host inside the network"),
        ("http://hub.test", "http://kubernetes/x", "it is a host inside the network"),
        ("http://hub.test", "http://a.b.svc.cluster.local./x", "it is a host inside the network"),
        ("http://hub.test", "http://169.254.169.254/latest", "it is the node itself or its link"),
        ("http://mirror.svc", "http://169.254.169.254/latest", "it is the node itself or its link"),
        ("http://10.1.2.3", "http://127.0.0.1:10250/pods", "it is the node itself or its link"),
        ("http://hub.test", "http://2130706433/x", "it is the node itself or its link"),
        ("http://hub.test", "http://0x7f.1/x", "it is the node itself or its link"),
        ("http://hub.test", "http://[::ffff:127.0.0.1]/x", "it is the node itself or its link"),
        ("http://hub.test", "http://[64:ff9b::a00:1]/x", "it is the node itself or its link"),
        ("http://hub.test", "http://[fd00::1]/x", "it is a host inside the network"),
    ],
)
async def test_redirects_that_are_not_followed(
    base: str, target: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(302, headers={"Location": target})

    monkeypatch.setattr(httpx, "AsyncClient", partial(httpx.AsyncClient, transport=httpx.MockTransport(answer)))
    with pytest.raises(HubError) as refused:
        await fetch("Qwen/Test", hub_url=base)
    assert str(refused.value).startswith("the hub redirects the list of files of Qwen/Test to ")
    assert says in str(refused.value)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("base", "target"),
    [
        ("https://hub.test", "https://cdn.hub.test/x"),
        ("https://hub.test", "https://8.8.8.8/x"),
        ("http://mirror.models.svc", "http://minio.models.svc.cluster.local/x"),
        ("http://10.1.2.3", "http://10.1.2.4/x"),
    ],
)
def test_redirects_that_are_followed(base: str, target: str) -> None:
    assert redirect_fault(base, target, base) is None


def test_a_name_that_leads_inside_is_noticed_by_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_operator.hubs.redirects.getproxies", dict)

    class Stream:
        def get_extra_info(self, _name: str) -> tuple[str, int]:
            return "10.96.0.1", 443

    request = httpx.Request("GET", "https://evil.test/x")
    response = httpx.Response(200, request=request, extensions={"network_stream": Stream()})
    assert "inside the network" in str(reached_fault(response, "https://hub.test"))
    assert reached_fault(response, "http://mirror.models.svc") is None
    assert reached_fault(response, "https://evil.test") is None
