"""YAML as Kubernetes reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

# Go's YAML reads 12345e67 as a number, PyYAML as text. A revision hash may look like that.
_NUMBER = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+")


class _QuotingDumper(yaml.SafeDumper):
    """Quotes the texts that Kubernetes would read as numbers."""


def _text(dumper: _QuotingDumper, value: str) -> yaml.ScalarNode:
    style = "'" if _NUMBER.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _mapping(dumper: _QuotingDumper, value: dict[str, Any]) -> yaml.MappingNode:
    return dumper.represent_mapping("tag:yaml.org,2002:map", value)


_QuotingDumper.add_representer(str, _text)
# What is passed on unchanged, as the source of a variable, has a class of its own.
_QuotingDumper.add_multi_representer(dict, _mapping)


def yaml_text(documents: Iterable[Any]) -> str:
    """The documents, members in their own order; several of them, and each with its marker."""
    text: str = yaml.dump_all(list(documents), Dumper=_QuotingDumper, sort_keys=False, explicit_start=True)
    return text
