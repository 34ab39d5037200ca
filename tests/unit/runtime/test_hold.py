"""The lock by which an engine keeps its model in the cache."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_runtime.hold import NotHeld, hold


@pytest.fixture
def held(tmp_path: Path) -> Path:
    path = tmp_path / ".in-use"
    path.touch()
    return path


@pytest.fixture
def other(held: Path) -> Iterator[int]:
    """Another process with the exclusive lock. An engine can have it too, with a descriptor that only reads."""
    descriptor = os.open(held, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield descriptor
    os.close(descriptor)


def test_many_engines_hold_the_same_model(held: Path) -> None:
    for descriptor in [hold(held), hold(held)]:
        os.close(descriptor)


def test_a_lock_that_another_process_keeps_is_told(held: Path, other: int) -> None:
    with pytest.raises(NotHeld, match="another process holds the lock"):
        hold(held, patience=0.0)


def test_a_model_that_was_removed_during_the_wait_is_gone(held: Path, other: int) -> None:
    def remove() -> None:
        held.unlink()
        fcntl.flock(other, fcntl.LOCK_UN)

    removing = threading.Timer(0.1, remove)
    removing.start()
    with pytest.raises(NotHeld, match="no longer in the cache"):
        hold(held)
    removing.join()
