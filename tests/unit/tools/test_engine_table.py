"""The option table from the source of a package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from qwen_operator import engines
from tools import engine_models, engine_table

FIELDS = '''
class Model(msgspec.Struct):
    """Namespace model."""

    _NS_PATH = "model"
    model_path: A[str, Arg(help="Path.", aliases=["--model"])]
    plain: A[bool, "Help alone."] = False
    fp8_runner: A[str, Arg(help="x", cli_name="--fp8-backend")] = "auto"
    tf32: A[bool, Arg(help="x", action=argparse.BooleanOptionalAction, aliases=["--b", "--a"])] = False
    paths: A[list, Arg(help="x", action=PathAction, no_cli=False)] = None
    hidden: A[bool, Arg(help="x", no_cli=True)] = False
    rank: A[int, Derived("Set while it runs.")]
    bare: int = 0
'''
SERVER_ARGS = """
class ServerArgs:
    @staticmethod
    def add_cli_args(parser):
        add_cli_args_from_dataclass(parser, ServerArgs)
        parser.add_argument("--config", type=str, help="A file.")
        parser.add_argument("--old-switch", "-o", action=DeprecatedStoreTrueAction, new_flag="--new")
        parser.add_argument("positional")
        parser.add_argument("--graphs", action=argparse.BooleanOptionalAction)
"""
FILES = {"sglang/srt/arg_groups/fields/model.py": FIELDS, "sglang/srt/server_args.py": SERVER_ARGS}
TABLE = {
    "--config": [],
    "--fp8-backend": [],
    "--graphs": ["--no-graphs"],
    "--model-path": ["--model"],
    "--old-switch": [],
    "--paths": [],
    "--plain": [],
    "--tf32": ["--a", "--b", "--no-a", "--no-b", "--no-tf32"],
}

MODEL_FILES = {
    "sglang/srt/models/a.py": """
class Base(nn.Module):
    def forward(self, input_ids, get_embedding: bool = False): ...
class Hidden(Base): ...
class Reward(Base): ...
class Other(nn.Module):
    def forward(self, input_ids): ...
EntryClass = [Base, Reward, Other]
""",
    "sglang/srt/models/b.py": "class Child(Hidden): ...\nEntryClass: type = Child\n",
    "sglang/srt/models/part/c.py": "class Deeper: ...\nEntryClass = Deeper\n",
    "sglang/srt/configs/model_config.py": (
        "def is_generation_model(names):\n    return not ('Reward' in names or 'Bert' in names)\n"
    ),
    "sglang/srt/layers/quantization/__init__.py": """
BASE_QUANTIZATION_METHODS: Dict[str, Type] = {"fp8": A, "gptq_marlin": B}
if is_cpu() or is_cuda():
    BASE_QUANTIZATION_METHODS.update({"mxfp4": C})
if is_npu():
    BASE_QUANTIZATION_METHODS.update({"gptq": D})
""",
    "sglang/srt/utils/hf_transformers/common.py": 'CONTEXT_LENGTH_KEYS = ["seq_length", "max_position_embeddings"]',
    "sglang/srt/function_call/parser_names.py": 'TOOL_CALL_PARSER_NAMES = ["qwen", "hermes"]',
    "sglang/srt/parser/reasoning_parser_names.py": 'REASONING_PARSER_NAMES = ["qwen3"]',
}


def test_options_from_fields_and_from_calls() -> None:
    table = engine_table.options(FILES)
    assert table == TABLE
    assert list(table) == sorted(table)


@pytest.mark.parametrize("version", engines.VERSIONS)
def test_the_tables_are_as_the_tool_writes_them(version: str) -> None:
    path = engine_table.FOLDER / engines.folder(version) / "options.json"
    text = path.read_text(encoding="utf-8")
    assert engine_table.render(version, json.loads(text)["options"]) == text


@pytest.mark.parametrize("version", engines.VERSIONS)
def test_the_models_are_as_the_tool_writes_them(version: str) -> None:
    text = (engine_table.FOLDER / engines.folder(version) / "models.json").read_text(encoding="utf-8")
    record = json.loads(text)
    assert record.pop("sglang") == version
    assert engine_models.render(version, record) == text


def test_models_from_the_source_of_a_package() -> None:
    assert engine_models.models(MODEL_FILES) == {
        "architectures": ["Base", "Child", "Other", "Reward"],
        "textless": ["Reward"],
        "embeds": ["Base", "Child"],
        "formats": ["fp8", "gptq_marlin", "mxfp4"],
        "contextKeys": ["seq_length", "max_position_embeddings"],
        "toolCallParsers": ["hermes", "qwen"],
        "reasoningParsers": ["qwen3"],
    }


@pytest.mark.parametrize("path", [path for path in MODEL_FILES if "/models/" not in path])
def test_a_package_that_lacks_a_table_is_refused(path: str) -> None:
    with pytest.raises(LookupError):
        engine_models.models({**MODEL_FILES, path: "x = 1"})


def test_a_package_without_a_parser_is_refused() -> None:
    with pytest.raises(KeyError, match=r"server_args\.py"):
        engine_table.options({})


def test_only_the_source_of_text_engines_is_read(tmp_path: Path) -> None:
    wheel = tmp_path / "sglang.whl"
    with ZipFile(wheel, "w") as archive:
        for name in ("sglang/srt/server_args.py", "sglang/multimodal_gen/server_args.py", "sglang/srt/x.so"):
            archive.writestr(name, "x = 1\n")
    assert engine_table.sources(wheel) == {"sglang/srt/server_args.py": "x = 1\n"}


def test_what_is_new_gone_and_missing() -> None:
    known = engines.newest()
    names = {*known.options.options.values(), "--brand-new"} - {"--tp-size", "--host"}
    table: engine_table.Options = {name: [] for name in names}
    assert engine_table.differences(table, known) == [
        f"options that SGLang {known.version} lacks: --brand-new",
        "options that are gone: --host, --tp-size",
    ]
    metrics = " ".join(f'"{name.removesuffix("_count")}"' for name in known.metrics.all if "queue_reqs" not in name)
    files = {"sglang/srt/function_call/parser_names.py": '"qwen" "qwen3_coder" "qwen3"', "sglang/srt/a.py": metrics}
    assert engine_table.missing(table, files, known) == [
        "option --tp-size",
        "metric sglang:num_grammar_queue_reqs",
        "metric sglang:num_queue_reqs",
        "parser mimo",
        "parser qwen3-thinking",
    ]


def test_the_version_is_needed() -> None:
    command = [sys.executable, "-m", "tools.engine_table"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "required: version" in done.stderr) == (2, True)
