"""Only one answer is decoded at a time."""

from __future__ import annotations

import threading

# Several readings may run at once, but only one decodes: as Python objects an answer is up to ten times larger.
DECODING = threading.Lock()
