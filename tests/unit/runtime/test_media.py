"""What an engine reads as an image, a video or a sound, and what it refuses."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from qwen_runtime import media

# Longer than any path.
BASE64 = "iVBORw0KGgo/" * 400

OPENED = ["data:image/png;base64,AAAA", "http://a.example/x.png", "https://a.example", BASE64, BASE64[:-2] + "=="]
REFUSED = [
    *("file:///etc/passwd", "FILE:///etc/passwd", "file:/etc/passwd", "/run/secrets/token", "model/config.json"),
    # The video decoder opens what has an existing file as its path, by whatever scheme.
    *("HTTP://10.0.0.5/etc/passwd", "ftp://10.0.0.5/etc/passwd", "concat:/etc/passwd", " http://a/x", "video:/etc/x"),
    # Base64, and just as well the name of a file.
    *("etc/passwd", "/9j/4AAQSkZJRg==", "", "x.png"),
    # Only what is base64 as a whole may be long.
    *("/etc/passwd" + "\n" * 5000, BASE64 + "\n", "/etc/passwd?" + BASE64, BASE64 + ".png", "../" + BASE64),
]


@pytest.mark.parametrize("medium", OPENED)
def test_what_comes_in_the_request_or_from_a_host_is_read(medium: str) -> None:
    assert media.refusal(medium, "image") is None


@pytest.mark.parametrize("medium", REFUSED)
def test_what_may_be_a_file_is_refused(medium: str) -> None:
    refused = media.refusal(medium, "video")
    assert refused is not None
    assert refused.startswith(f"video {medium[:100]!r} is no address that the engine may open: send the video in the")
    assert len(refused) < 350


@dataclass
class ImageData:
    url: str


@dataclass
class GenerateReqInput:
    """The form of SGLang 0.5.22 and 0.5.23."""

    image_data: Any = None
    video_data: Any = None
    audio_data: Any = None
    normalized: bool = False

    def normalize_batch_and_arguments(self) -> None:
        self.normalized = True


def guarded() -> type[GenerateReqInput]:
    """SGLang's request, after the guard."""
    module = ModuleType("io_struct")
    for name in media.REQUESTS:
        setattr(module, name, type(name, (GenerateReqInput,), {}))
    media.close(module)
    request: type[GenerateReqInput] = module.EmbeddingReqInput
    return request


@pytest.mark.parametrize("field", media.FIELDS)
@pytest.mark.parametrize(
    "shape",
    [
        lambda one: one,
        lambda one: ["https://a.example", one],
        lambda one: [None, [one]],
        lambda one: [[ImageData("data:,")], [ImageData(one)]],
        lambda one: {"url": one},
        lambda one: [{"url": [one]}, 7, b"bytes"],
    ],
)
def test_a_file_is_found_in_every_form_that_a_request_has(field: str, shape: Any) -> None:
    Request = guarded()
    bad = Request(**{field: shape("/etc/passwd")})
    with pytest.raises(ValueError, match="'/etc/passwd' is no address that the engine may open"):
        bad.normalize_batch_and_arguments()
    assert not bad.normalized
    good = Request(**{field: shape("data:image/png;base64,AAAA")})
    good.normalize_batch_and_arguments()
    assert good.normalized


@pytest.mark.parametrize("lacks", [*media.REQUESTS, media.NORMALIZE, *media.FIELDS])
def test_requests_of_another_form_do_not_start(lacks: str) -> None:
    module = ModuleType("io_struct")
    parts = {part: None for part in (media.NORMALIZE, *media.FIELDS) if part != lacks}
    for name in media.REQUESTS:
        if name != lacks:
            setattr(module, name, type(name, (), dict(parts)))
    with pytest.raises(
        ImportError, match=r"io_struct has no (Generate|Embedding)ReqInput whose media qwen-runtime can"
    ):
        media.close(module)
