"""CPU stand-in for the CUDA kernel package of SGLang.

With `SGLANG_USE_CPU_ENGINE=1` SGLang imports names for speculative decoding from here. Without AMX every layer of a
plain model takes its torch code, so none of them is called.
"""

from collections.abc import Callable
from typing import NoReturn


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_args: object, **_kwargs: object) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} exists only on a GPU; this is the CPU stand-in")

    missing.__name__ = name
    return missing
