"""CPU stand-in for triton: kernels can be defined, and are never launched with `--device cpu`.

Made of the mock that SGLang itself ships for platforms without triton; it replaces this very package in `sys.modules`.
The attributes below are those that torch and SGLang 0.5.23 read while they are imported.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def _load_stubs() -> Any:
    """SGLang's mock module, loaded from its file: importing sglang here would import triton again."""
    sglang = importlib.util.find_spec("sglang")
    if sglang is None or sglang.origin is None:
        raise ImportError("the triton stand-in needs sglang, which is not installed")
    path = Path(sglang.origin).with_name("_platform_stubs.py")
    spec = importlib.util.spec_from_file_location("_sglang_platform_stubs", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"the triton stand-in cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


stubs = _load_stubs()


class _Constexpr:
    def __init__(self, value: object = None) -> None:
        self.value = value


def _mock(name: str, **attributes: object) -> ModuleType:
    module: ModuleType = stubs._make_mock(name)
    for attribute, value in attributes.items():
        setattr(module, attribute, value)
    return module


def _empty_class(name: str) -> type:
    return type(name, (stubs._StubBase,), {})


def _error_class(name: str) -> type:
    return type(name, (Exception,), {})


def _install() -> None:
    sys.meta_path.insert(0, stubs._TritonFinder())
    runtime = _mock(
        "triton.runtime",
        jit=_mock(
            "triton.runtime.jit",
            JITFunction=_empty_class("JITFunction"),
            KernelInterface=_empty_class("KernelInterface"),
        ),
        cache=_mock("triton.runtime.cache", triton_key=stubs._triton_key),
        autotuner=_mock(
            "triton.runtime.autotuner",
            OutOfResources=_error_class("OutOfResources"),
            PTXASError=_error_class("PTXASError"),
        ),
    )
    compiler = _mock(
        "triton.compiler",
        CompiledKernel=_empty_class("CompiledKernel"),
        compiler=_mock("triton.compiler.compiler", ASTSource=_empty_class("ASTSource"), triton_key=stubs._triton_key),
    )
    _mock(
        "triton",
        __version__="3.0.0",
        cdiv=stubs._cdiv,
        next_power_of_2=stubs._next_power_of_2,
        Config=stubs._Config,
        language=_mock("triton.language", constexpr=_Constexpr),
        runtime=runtime,
        compiler=compiler,
        # torch looks for a GPU vendor here at the first compiled function (tensor parallelism).
        backends=_mock("triton.backends", backends={}),
    )


_install()
