"""The proxy's reader of bodies against Python's: they agree, or the body is refused. Also its bounds in memory."""

import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from aiohttp.test_utils import unused_port
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_operator.gateway.nginx import LUA, MODULES
from tests.testbed.packages import PROXY, ensure_packages
from tests.unit.gateway.proxied import until

EXAMPLES = int(os.environ.get("QWEN_FUZZ_EXAMPLES", "150"))
CONFIGURATION = """\
load_module {modules}/ndk_http_module.so;
load_module {modules}/ngx_http_lua_module.so;
daemon off;
pid {folder}/pid;
error_log {folder}/error.log error;
worker_processes 1;
{user}
events {{ worker_connections 64; }}
http {{
    access_log off;
    {temporary}
    lua_package_path "{lua}/?.lua;/usr/share/lua/5.1/?.lua;;";
    client_max_body_size 64m;
    server {{
        listen 127.0.0.1:{port};
        location = /file {{
            client_body_in_file_only clean;
            content_by_lua_block {{
                ngx.req.read_body()
                ngx.print(require("qwen.body").model(function() ngx.sleep(0.001) end) or "")
            }}
        }}
        location = /series {{
            content_by_lua_block {{
                local metrics = require "qwen.metrics"
                for number = 1, 30000 do metrics.ended("greedy", "m" .. number, 200) end
                metrics.ended("polite", "open", 200)
                metrics.page()
            }}
        }}
        location = /asked {{
            content_by_lua_block {{
                local demand, now, clock = require "qwen.demand", ngx.now(), ngx.now
                collectgarbage()
                local before = collectgarbage("count")
                for day = 1, 20 do
                    ngx.now = function() return now + 86400 * day end
                    for number = 1, 10000 do demand.ask("m" .. day .. "-" .. number) end
                    for number = 1, 10000 do demand.come("c" .. day .. "-" .. number) end
                end
                ngx.now = clock
                collectgarbage()
                ngx.print(collectgarbage("count") - before)
            }}
        }}
        location = /held {{
            content_by_lua_block {{
                local limits = require "qwen.limits"
                for number = 1, 1000 do
                    limits.take_hold("t", "m" .. number, 8, 8)
                    limits.free_hold("t", "m" .. number)
                end
                limits.take_hold("t", "waits", 8, 8)
                require("qwen.metrics").page()
            }}
        }}
        location = /debt {{
            content_by_lua_block {{
                local limits = require "qwen.limits"
                limits.spend_tokens("t", 600, 1e8)
                ngx.print(limits.has_tokens("t", 600))
            }}
        }}
        location / {{
            client_body_buffer_size 64m;
            content_by_lua_block {{
                ngx.req.read_body()
                local reader = require("qwen.body").reader(function() end)
                local body, size = ngx.req.get_body_data() or "", tonumber(ngx.var.arg_size)
                for at = 1, #body, size do
                    if reader:feed(body:sub(at, at + size - 1)) then return end
                end
                ngx.print(reader:finish() or "")
            }}
        }}
    }}
}}
"""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    ensure_packages(PROXY)
    folder, port = tmp_path_factory.mktemp("nginx"), unused_port()
    temporary = " ".join(f"{m}_temp_path {folder}/t;" for m in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    text = CONFIGURATION.format(
        modules=MODULES,
        folder=folder,
        user="user root;" if os.geteuid() == 0 else "",
        temporary=temporary,
        lua=LUA,
        port=port,
    )
    (folder / "conf").write_text(text)
    process = subprocess.Popen(["nginx", "-c", str(folder / "conf"), "-e", "stderr"])
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", verify=False) as client:
        try:
            until((folder / "pid").exists, "nginx runs")
            yield client
        finally:
            process.terminate()
            process.wait()


def model_of(reader: httpx.Client, body: bytes, size: int = 65536) -> str:
    """The model that the proxy finds, or an empty text."""
    return reader.post(f"/?size={size}", content=body).text


class Object(list[tuple[str, Any]]):
    """A JSON object as its fields, so that a name may come twice."""


def pythons(body: bytes) -> str | None:
    """The model by Python's parser, or None if there is not exactly one."""
    try:
        value = json.loads(body.decode("utf-8", "surrogateescape"), object_pairs_hook=Object)
    except ValueError:
        return None
    models = [one for name, one in value if name.lower() == "model"] if isinstance(value, Object) else []
    return models[0] if len(models) == 1 and isinstance(models[0], str) else None


NAMES = st.sampled_from(["model", "Model", "models", "messages", "m", "", 'a"b', "a\\"])
TEXTS = st.one_of(st.sampled_from(["open", "Qwen/a", 'x","model":"y', "\\", '"', "\u2028é"]), st.text(max_size=12))
VALUES = st.recursive(
    st.one_of(TEXTS, st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=12,
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.lists(st.tuples(NAMES, VALUES), max_size=5),
    model=TEXTS,
    size=st.integers(1, 9),
    indent=st.sampled_from([None, 1]),
)
def test_a_model_that_is_found_is_the_one_of_another_parser(
    reader: httpx.Client, fields: list[tuple[str, Any]], model: str, size: int, indent: int | None
) -> None:
    pairs = [*fields, ("model", model)]
    text = "{" + ",".join(f"{json.dumps(name)} : {json.dumps(value, indent=indent)}" for name, value in pairs) + "}"
    read_model = model_of(reader, text.encode(), size)

    assert read_model in ("", pythons(text.encode()))
    if not read_model:
        plain = [name for name, _ in pairs if name.lower() == "model" or "\\" in json.dumps(name)] == ["model"]
        assert not (plain and model.isascii() and model.isprintable() and model and " " not in model)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), size=st.integers(1, 9))
def test_a_damaged_body_is_refused_or_read_as_by_another_parser(
    reader: httpx.Client, data: st.DataObject, size: int
) -> None:
    body = bytearray(b'{"a":[{"model":"x"},"\\"",1e5],"model":"open","b":{"c":"\\\\"}}')
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 2))] = data.draw(st.sampled_from(list(b'{}[]",:\\ mM\x00'))).to_bytes()
    model = model_of(reader, bytes(body), size)

    parsed = pythons(bytes(body))
    # A number or a word that is not JSON is left to the router, which refuses it: the model is the same for both.
    assert not model or parsed in (None, model)


FILLERS = {
    "text": ('"' + "a" * 16_000_000 + '"', "open"),
    "numbers": ("[" + "151643," * 2_000_000 + "0]", "open"),
    "code": ('"' + ("a" * 40 + "\\n") * 400_000 + '"', "open"),
    "escapes": ('"' + "\\n" * 8_000_000 + '"', ""),
    "brackets": ("[" + "[]," * 5_000_000 + "0]", ""),
}


@pytest.mark.parametrize("filler", FILLERS)
def test_a_huge_body_is_read_or_refused_while_others_are_answered(reader: httpx.Client, filler: str) -> None:
    text, model = FILLERS[filler]
    answered = 0
    with ThreadPoolExecutor(1) as pool:
        body = ('{"a":' + text + ',"model":"open"}').encode()
        huge = pool.submit(lambda: reader.post("/file", content=body, timeout=50).text)
        while not huge.done():
            assert model_of(reader, b'{"model":"small"}') == "small"
            answered += 1
        assert huge.result() == model
    assert answered > 2


def test_one_tenant_does_not_use_up_the_series_of_others(reader: httpx.Client) -> None:
    lines = reader.get("/series").text.splitlines()
    assert 'qwen_gateway_requests_total{tenant="polite",model="open",code="200"} 1' in lines
    greedy = [line for line in lines if 'tenant="greedy"' in line]
    assert len(greedy) == 257
    assert 'qwen_gateway_requests_total{tenant="greedy",model="",code="200"} 29744' in greedy


def test_a_wrong_count_of_tokens_costs_a_tenant_an_hour_at_most(reader: httpx.Client) -> None:
    assert 3595 <= int(reader.get("/debt").text) <= 3601


def test_names_that_nobody_reads_are_forgotten(reader: httpx.Client) -> None:
    """Whoever may edit servedNames can ask for a new name every second. Without sleepers the operator reads none."""
    kibibytes = float(reader.get("/asked").text)
    assert kibibytes < 2000, "20 days have 20 MB"


def test_only_a_name_for_which_requests_wait_has_a_series(reader: httpx.Client) -> None:
    lines = reader.get("/held").text.splitlines()
    assert [line for line in lines if line.startswith("qwen_gateway_held_requests{")] == [
        'qwen_gateway_held_requests{model="waits"} 1'
    ]
