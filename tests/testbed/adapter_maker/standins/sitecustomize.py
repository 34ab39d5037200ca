"""CPU stand-in for page-locked memory, which SGLang asks for when it serves adapters: without CUDA there is none."""

import importlib.abc
import importlib.machinery
import sys
from typing import Any

MAKERS = ("tensor", "empty", "zeros", "ones", "full", "empty_like", "zeros_like")


def patch(torch: Any) -> None:
    torch.Tensor.pin_memory = lambda self, *_args, **_named: self
    for name in MAKERS:
        setattr(torch, name, without_pin(getattr(torch, name)))


def without_pin(make: Any) -> Any:
    def made(*args: Any, **named: Any) -> Any:
        named.pop("pin_memory", None)
        return make(*args, **named)

    made.__name__ = make.__name__
    return made


class Finder(importlib.abc.MetaPathFinder):
    """Patches torch as soon as it is imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        loader: Any = spec.loader if spec else None
        if loader is None:
            return None
        run = loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            patch(module)

        loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
