"""The tables of docs/security.md are those of the rules."""

from __future__ import annotations

from tools import tenancy_tables


def test_the_tables_are_the_generated_ones() -> None:
    """After a change: python -m tools.tenancy_tables"""
    content = tenancy_tables.PAGE.read_text(encoding="utf-8")
    assert tenancy_tables.page(content) == content
