"""The guard before an engine's administrative endpoints and a checkpoint's code, alone and in real processes."""

import asyncio
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from qwen_runtime.guard import CODE_FUNCTIONS, CODE_MODULE, PLACES, SERVER_MODULE, Guard, environment, is_open
from qwen_runtime.media import REQUEST_MODULE

# Every endpoint of SGLang 0.5.22 and 0.5.23 that changes an engine or tells more than a client needs.
CLOSED = """
/server_info /get_server_info /set_internal_state /flush_cache /abort_request /pause_generation /continue_generation
/release_memory_occupation /resume_memory_occupation /update_weights_from_disk /update_weights_from_tensor
/update_weights_from_distributed /update_weights_from_ipc /init_weights_update_group /destroy_weights_update_group
/get_weights_by_name /weights_checker /load_lora_adapter /unload_lora_adapter /load_lora_adapter_from_tensors
/open_session /close_session /configure_logging /start_profile /stop_profile /freeze_gc /set_trace_level /slow_down
/pd_role_switch /hicache/storage-backend /add_external_corpus /health_generate /docs /openapi.json /dumper/x
/flush_cache/ //flush_cache /metrics/../flush_cache /v1/unknown
"""
OPEN = """
/health /ready /metrics /v1/models /v1/models/m /model_info /v1/loads /v1/chat/completions /v1/completions
/v1/embeddings /v1/messages /v1/responses /v1/responses/1/cancel /v1/rerank /v1/score /generate /v1/tokenize
"""


@pytest.mark.parametrize("path", CLOSED.split())
def test_other_hosts_reach_no_administrative_endpoint(path: str) -> None:
    for client in ("10.0.0.5", "127.0.0.6", "fd00::5", "testclient", None):
        assert not is_open("http", client, path)
    for client in ("127.0.0.1", "::1"):
        assert is_open("http", client, path)


@pytest.mark.parametrize("path", OPEN.split())
def test_other_hosts_reach_what_the_gateway_and_the_probes_use(path: str) -> None:
    assert is_open("http", "10.0.0.5", path)
    assert not is_open("websocket", "10.0.0.5", path)


@pytest.mark.parametrize("root", ["/llm", "/v1/models", "/v1/models/", "/health"])
def test_a_root_path_is_no_part_of_what_is_open(root: str) -> None:
    """With --fastapi-root-path, the server puts it before the path, and the application takes it away again."""
    foreign = {"type": "http", "client": ("10.0.0.5", 1), "root_path": root}
    assert asyncio.run(answer({**foreign, "path": f"{root}/health"})) == [{"type": "served"}]
    assert asyncio.run(answer({**foreign, "path": f"{root}/flush_cache"}))[0].get("status") == 403


def test_a_path_that_only_begins_like_the_root_path_stays_whole() -> None:
    foreign = {"type": "http", "client": ("10.0.0.5", 1), "root_path": "/llm"}
    assert asyncio.run(answer({**foreign, "path": "/llm-2/health"}))[0].get("status") == 403
    assert asyncio.run(answer({**foreign, "path": "/health"})) == [{"type": "served"}]


async def answer(scope: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The ASGI messages for one request to an application that says `served`."""
    sent: list[Mapping[str, Any]] = []

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> None:
        return None

    async def app(_scope: Mapping[str, Any], _receive: Any, send: Any) -> None:
        await send({"type": "served"})

    await Guard(app)(scope, receive, send)
    return sent


def test_a_refused_request_gets_403_and_a_sentence() -> None:
    foreign = {"type": "http", "client": ("10.0.0.5", 1), "path": "/flush_cache"}
    start, body = asyncio.run(answer(foreign))
    assert start["status"] == 403
    assert b"/flush_cache is only open inside the engine's pod" in body["body"]
    assert asyncio.run(answer({**foreign, "type": "websocket"})) == [{"type": "websocket.close", "code": 1008}]
    assert asyncio.run(answer({**foreign, "client": ("127.0.0.1", 1)})) == [{"type": "served"}]
    assert asyncio.run(answer({"type": "lifespan"})) == [{"type": "served"}]


def test_the_environment_keeps_what_it_had_but_trusts_no_forwarding_proxy() -> None:
    before = {"PYTHONPATH": "/mine:/other", "FORWARDED_ALLOW_IPS": "*", "HOME": "/home"}
    assert environment(before, "/a.pyz", ["sglang"]) == {"PYTHONPATH": "/a.pyz:/mine:/other", "HOME": "/home"}
    assert environment({}, "/a.pyz", []) == {"PYTHONPATH": "/a.pyz"}


@pytest.mark.parametrize(
    ("words", "trusts"),
    [
        ([], False),
        (["--trust-remote-code"], True),
        (["--served-model-name=--trust-remote-code"], False),
        (["--trust-remote-codes"], False),
    ],
)
def test_only_the_command_says_whether_code_is_trusted(words: list[str], trusts: bool) -> None:
    """A tenant's variable does not."""
    told = environment({"QWEN_RUNTIME_TRUSTS_CODE": "1"}, "/a.pyz", ["sglang", *words])
    assert ("QWEN_RUNTIME_TRUSTS_CODE" in told) is trusts


def engine_image(folder: Path, server: str, requests: str = "") -> Path:
    """A folder for PYTHONPATH with a package that has the places of SGLang's modules, and a sitecustomize."""
    for name, text in ((SERVER_MODULE, server), (REQUEST_MODULE, requests)):
        file = module_file(folder, name)
        file.parent.mkdir(parents=True)
        file.write_text(text)
    for part in (folder / "sglang").rglob("*/"):
        (part / "__init__.py").touch()
    (folder / "sglang" / "__init__.py").touch()
    (folder / "sitecustomize.py").write_text("print('the image customizes its site')\n")
    return folder


def module_file(folder: Path, name: str) -> Path:
    return folder / (name.replace(".", "/") + ".py")


def start(
    archive: Path, image: Path, tmp_path: Path, child: str = "", words: Sequence[str] = ()
) -> "subprocess.CompletedProcess[str]":
    """Run a child process of a child process of `launch`, as SGLang starts its HTTP workers."""
    child = child or f"import {SERVER_MODULE} as server; print(server.app.added)"
    program = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {child!r}]))"
    command = [sys.executable, str(archive), "launch", "--termination-log", str(tmp_path / "log"), "--"]
    return subprocess.run(
        [*command, sys.executable, "-c", program, *words],
        env={"PYTHONPATH": str(image)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_process_of_an_engine_adds_the_guard_to_its_http_server(archive: Path, tmp_path: Path) -> None:
    add = "def add_middleware(self, one): self.added.append(one.__name__)"
    server = f"class App:\n    added = []\n    {add}\napp = App()\n"
    done = start(archive, engine_image(tmp_path / "image", server), tmp_path)
    assert "['Guard']" in done.stdout.splitlines(), done.stderr
    # The launcher, the engine's first process, and that one's child.
    assert done.stdout.count("the image customizes its site") == 3


def test_an_http_server_of_an_unknown_form_does_not_start(archive: Path, tmp_path: Path) -> None:
    done = start(archive, engine_image(tmp_path / "image", "def make_app(): ...\n"), tmp_path)
    assert "has no application that qwen-runtime can close to other pods" in done.stderr


@pytest.mark.parametrize("name", PLACES)
def test_an_engine_whose_modules_are_elsewhere_does_not_start(archive: Path, tmp_path: Path, name: str) -> None:
    image = engine_image(tmp_path / "image", "")
    module_file(image, name).unlink()
    done = start(archive, image, tmp_path)
    assert done.returncode == 1
    assert f"this sglang has no {module_file(Path(), name)}".replace(" sglang/", " ") in done.stderr


REQUESTS = """
class GenerateReqInput:
    image_data = video_data = audio_data = None
    def normalize_batch_and_arguments(self):
        print("normalized", self.image_data)
class EmbeddingReqInput(GenerateReqInput): ...
"""
NAMES_A_FILE = f"""
from {REQUEST_MODULE} import GenerateReqInput
request = GenerateReqInput()
for request.image_data in ("data:,", "/etc/passwd"):
    request.normalize_batch_and_arguments()
"""


def test_every_process_of_an_engine_refuses_files_as_media(archive: Path, tmp_path: Path) -> None:
    done = start(archive, engine_image(tmp_path / "image", "", REQUESTS), tmp_path, NAMES_A_FILE)
    assert "normalized data:," in done.stdout, done.stderr
    assert "ValueError: image '/etc/passwd' is no address that the engine may open" in done.stderr
    assert "normalized /etc/passwd" not in done.stdout
    done = start(archive, engine_image(tmp_path / "other", ""), tmp_path, f"import {REQUEST_MODULE}")
    assert "has no GenerateReqInput whose media qwen-runtime can check" in done.stderr


# The form of transformers 5.19.0, which both known versions of SGLang pin.
TRANSFORMERS = """
def get_cached_module_file(*names, **more):
    print("names are imported")
    return "evil.py"
def get_class_in_module(name, path, *, force_reload=False):
    print("code runs")
def get_class_from_dynamic_module(reference, *names, **more):
    return get_class_in_module("Evil", get_cached_module_file(*names, "evil.py", **more), force_reload=False)
"""
LOADS = (
    "from transformers.dynamic_module_utils import get_class_from_dynamic_module as load\n"
    "load('evil.Evil', '/models/source', trust_remote_code=True)"
)


def with_transformers(folder: Path, module: str) -> Path:
    """The same folder with a package that has the place of transformers."""
    package = engine_image(folder, "") / "transformers"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "dynamic_module_utils.py").write_text(module)
    return folder


def test_code_of_a_checkpoint_runs_only_if_the_command_trusts_it(archive: Path, tmp_path: Path) -> None:
    image = with_transformers(tmp_path / "image", TRANSFORMERS)
    refused = start(archive, image, tmp_path, LOADS)
    assert "RuntimeError: the checkpoint has code of its own, which the engine runs only with the option" in (
        refused.stderr
    )
    assert "names are imported" not in refused.stdout
    assert "code runs" not in refused.stdout
    trusted = start(archive, image, tmp_path, LOADS, ["--trust-remote-code"])
    assert "RuntimeError" not in trusted.stderr
    assert "code runs" in trusted.stdout


@pytest.mark.parametrize("name", CODE_FUNCTIONS)
def test_each_function_that_runs_code_is_replaced(archive: Path, tmp_path: Path, name: str) -> None:
    image = with_transformers(tmp_path / "image", TRANSFORMERS)
    done = start(archive, image, tmp_path, f"import {CODE_MODULE} as code; code.{name}('a', 'b')")
    assert "RuntimeError: the checkpoint has code of its own" in done.stderr
    image = with_transformers(tmp_path / "other", TRANSFORMERS.replace(name, "renamed"))
    done = start(archive, image, tmp_path, f"import {CODE_MODULE}")
    assert f"has no {name} that qwen-runtime can keep from running code" in done.stderr
