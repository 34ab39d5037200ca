"""Fixtures of several folders."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `api_server.serving` writes its kubeconfig, and where clients read it."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "kubeconfig"
