"""Keeps the engine from opening files that a request names as its image, video or sound.

SGLang takes a medium as an address, as base64, or as the path of a file. It has an option about the hosts of addresses,
and none about files. So whoever may send requests could have it open any file that its container can read. Some
addresses pass its option too: it hands `HTTP://host/path` to the video decoder if the container has a file `/path`.

All endpoints make one of two requests of SGLang, and the tokenizer's manager normalizes each of them before it reads a
medium. There the names of media are checked. SGLang answers a ValueError with the status 400.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

REQUEST_MODULE = "sglang.srt.managers.io_struct"
REQUESTS = ("GenerateReqInput", "EmbeddingReqInput")
FIELDS: Mapping[str, str] = {"image_data": "image", "video_data": "video", "audio_data": "audio"}
NORMALIZE = "normalize_batch_and_arguments"

# SGLang compares them like this, with their case.
ADDRESSES = ("data:", "http://", "https://")
# Linux has no longer path (PATH_MAX), so a longer text is no file's name.
LONGEST_PATH = 4096
# No white space: an address loses its line breaks when SGLang takes it apart, and becomes a short path again.
BASE64 = re.compile(r"[A-Za-z0-9+/=]+")
# How much of a name an answer repeats.
SHOWN_CHARACTERS = 100


def refusal(medium: str, kind: str) -> str | None:
    """Why the engine must not read this medium, or None. `kind` is one of the values of `FIELDS`."""
    if medium.startswith(ADDRESSES) or (len(medium) > LONGEST_PATH and BASE64.fullmatch(medium)):
        return None
    return (
        f"{kind} {medium[:SHOWN_CHARACTERS]!r} is no address that the engine may open: send the {kind} in the request "
        "(data:TYPE;base64,...), or an address that starts with http:// or https://"
    )


def _texts(data: object) -> Iterator[str]:
    """The addresses, paths and base64 texts in a field of a request: in lists, mappings, and SGLang's ImageData."""
    waiting = [data]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, list | tuple):
            waiting.extend(one)
        elif isinstance(one, Mapping):
            waiting.append(one.get("url"))
        else:
            waiting.extend(url for url in (getattr(one, "url", None),) if isinstance(url, str))


def check(request: object) -> None:
    """Raise a ValueError if a request of SGLang names a medium that the engine must not read."""
    for field, kind in FIELDS.items():
        for text in _texts(getattr(request, field, None)):
            if problem := refusal(text, kind):
                raise ValueError(problem)


def close(module: ModuleType) -> None:
    """Have the requests of SGLang check their media. Raises an ImportError if the module has another form."""
    for name in REQUESTS:
        request = getattr(module, name, None)
        if not all(hasattr(request, part) for part in (NORMALIZE, *FIELDS)):
            raise ImportError(f"{module.__name__} has no {name} whose media qwen-runtime can check")
        setattr(request, NORMALIZE, _checked(getattr(request, NORMALIZE)))


def _checked(normalize: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(normalize)
    def checked(request: object, *more: Any, **named: Any) -> Any:
        check(request)
        return normalize(request, *more, **named)

    return checked
