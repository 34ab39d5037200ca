"""What a failed test on the test bed needs to be understood: it cannot be asked again later."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

from tests.testbed.bed import Release
from tests.testbed.kubectl import Kubectl, KubectlError

_LINES, _COLUMNS = 60, 600
_OPERATOR = "app.kubernetes.io/component=operator"


def evidence(kubectl: Kubectl, release: Release, space: str | None, seconds: int) -> Iterator[tuple[str, str]]:
    """Titles and texts: what the operator logged in the last seconds, and what the test's namespace has.

    It never raises. The tests of other namespaces run beside, so of their lines only warnings and errors count.
    """
    log = ("logs", "-n", release.namespace, "-l", _OPERATOR, f"--since={seconds}s", "--tail=5000")
    words = ('"WARNING"', '"ERROR"', "Traceback", space or "")
    yield "operator log", _shown(line for line in _said(kubectl, *log) if any(word in line for word in words))
    if space is not None:
        yield f"objects in {space}", _shown(_said(kubectl, "get", "qd,pods", "-n", space, "-o", "wide"))
        events = ("get", "events", "-n", space, "--sort-by=.lastTimestamp")
        yield f"events in {space}", _shown(_said(kubectl, *events))


def _said(kubectl: Kubectl, *command: str) -> list[str]:
    try:
        return kubectl.run(*command, timeout=20).splitlines()
    except (KubectlError, subprocess.SubprocessError, OSError) as error:
        return [f"not to be had: {error}"]


def _shown(lines: Iterator[str] | list[str]) -> str:
    return "\n".join(line[:_COLUMNS] for line in list(lines)[-_LINES:])
