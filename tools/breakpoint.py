"""What `breakpoint()` calls in an operator that `make dev` runs, by PYTHONBREAKPOINT."""

from __future__ import annotations

import pdb
import sys


def stop() -> None:
    """Open pdb in the calling function.

    pdb's own handler of SIGINT would replace the operator's, which then could not be stopped in order.
    """
    pdb.Pdb(nosigint=True).set_trace(sys._getframe(1))
