"""The pictures of the README show what the code calculates today."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from bench import readme_pictures


def texts(picture: str) -> str:
    """All words of a picture."""
    return " ".join(ET.fromstring(picture).itertext())


def test_the_committed_pictures_are_current() -> None:
    """After a change: python -m bench.readme_pictures"""
    folder = readme_pictures.IMAGES
    assert (folder / readme_pictures.PLAN).read_text(encoding="utf-8") == readme_pictures.plan_picture()
    assert (folder / readme_pictures.SCALE_UP).read_text(encoding="utf-8") == readme_pictures.scale_up_picture()


def test_the_plan_shows_every_split_and_one_choice() -> None:
    words = texts(readme_pictures.plan_picture())
    assert all(f"TP {size}" in words for size in (1, 2, 4, 8))
    assert "57 408 tokens: the plan" in words
    assert words.count("the plan") == 1


def test_the_run_shows_its_moments_in_order() -> None:
    words = texts(readme_pictures.scale_up_picture())
    moments = [words.index(f"{second} s: ") for second in (3.8, 61.3, 83.4)]
    assert moments == sorted(moments)
    assert "52 complete, none cut" in words
