"""How long a server asks its clients to wait, from the headers of an answer.

Servers say it in `Retry-After` (RFC 9110), the real Hugging Face in `RateLimit`, such as `"resolvers";r=0;t=55`: no
request is left of this quota for 55 s (draft-ietf-httpapi-ratelimit-headers).
"""

from __future__ import annotations

from collections.abc import Callable
from email.utils import parsedate_to_datetime

from qwen_operator import untrusted

LONGEST_SECONDS = 300.0
_LONGEST_HEADER = 1024
_MOST_SECONDS = 10**6


def asked_pause(header: Callable[[str], str | None]) -> float:
    """The seconds, at most LONGEST_SECONDS; 0 if the headers do not say. `header` gives one by its name."""
    retry, limits, date = ((header(name) or "")[:_LONGEST_HEADER] for name in ("Retry-After", "RateLimit", "Date"))
    return min(max(_retry_after(retry, date), _rate_limit(limits)), LONGEST_SECONDS)


def _retry_after(text: str, date: str) -> float:
    """Seconds, or a time on the clock of the server."""
    if text.isascii() and text.isdigit():
        return float(untrusted.digits(text, _MOST_SECONDS, _MOST_SECONDS))
    try:
        then, now = parsedate_to_datetime(text), parsedate_to_datetime(date)
        return max(0.0, (then - now).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _rate_limit(text: str) -> float:
    """The longest time until a quota with nothing left begins anew; 0 if none is used up."""
    longest = 0.0
    for quota in text.split(","):
        pairs = (part.partition("=") for part in quota.split(";")[1:])
        values = {name.strip(): value.strip() for name, _, value in pairs}
        if untrusted.digits(values.get("r"), _MOST_SECONDS, 1) == 0:
            seconds = untrusted.digits(values.get("t"), _MOST_SECONDS, 0)
            # The server rounds down.
            longest = max(longest, seconds + 1.0 if seconds else 0.0)
    return longest
