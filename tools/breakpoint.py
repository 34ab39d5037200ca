"""The target of `breakpoint()` in an operator that `make dev` runs. PYTHONBREAKPOINT sets it."""

from __future__ import annotations

import pdb
import sys


def stop() -> None:
    """Open pdb in the calling function.

    Without `nosigint`, pdb replaces the operator's handler of SIGINT, and the operator cannot stop cleanly.
    """
    pdb.Pdb(nosigint=True).set_trace(sys._getframe(1))
