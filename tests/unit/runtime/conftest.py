"""The archive, made as the image has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from image_layer import write_runtime_archive


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("built") / "any-name.pyz"
    write_runtime_archive(target)
    return target
