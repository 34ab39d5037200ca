"""How many pods were created to fetch a model since a place last got it, and when the next one may be. Pure.

An annotation of the ControllerRevision counts them, because nothing else is left of a pod that is gone: whoever deletes
such pods, and whatever ends them, they are not created for ever, and replicas do not wait for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from qwen_operator import objects, untrusted
from qwen_operator.actions.events import rfc3339
from qwen_operator.manifests.kept import CUT
from qwen_operator.manifests.names import ANNOTATION_FETCH_PODS, Manifest

START_SECONDS = 120.0
"""Replicas wait no longer than this for downloads that have not started."""
_FREE = 2
"""So many pods may be lost before the next ones are delayed."""
_LONGEST_SECONDS = 3600.0
_DOUBLED = 5
_MOST_PODS = 999
_CLOCKS_DIFFER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Attempts:
    """`pods`: so many were created since a place last got the model, from `since` to `last`; None if there were none.

    `readable` is false if nobody knows, because somebody filled the annotations of the object.
    """

    pods: int = 0
    since: datetime | None = None
    last: datetime | None = None
    readable: bool = True

    def waits(self, present: int, now: datetime) -> float:
        """Seconds until the next pods may be created; 0 if they may be now. `present`: so many have not ended."""
        lost = self.pods - present
        if lost <= _FREE or self.last is None:
            return 0.0
        pause = delay(lost - _FREE)
        return max(0.0, pause - age(self.last, now, pause))

    def patience(self, now: datetime) -> float:
        """For so many more seconds, replicas may wait for pods that have not started."""
        return START_SECONDS - age(self.since, now, START_SECONDS) if self.since else START_SECONDS

    def after(self, new: int, now: datetime, places: Collection[str]) -> str:
        """The value of the annotation with so many new pods. `places`: those of which an annotation says that they have
        the model."""
        since = self.since or now
        return f"{min(_MOST_PODS, self.pods + new)} {rfc3339(since)} {rfc3339(now)} {_digest(places)}"


def attempts_of(revision: Manifest, places: Collection[str], annotation: str = ANNOTATION_FETCH_PODS) -> Attempts:
    """What the annotation of a ControllerRevision says; nothing if a place got the model since it was written.

    Who may edit the object may write anything there.
    """
    if CUT in revision:
        return Attempts(readable=False)
    value = objects.annotations(revision).get(annotation)
    words = value.split(" ") if isinstance(value, str) and len(value) <= 128 else []
    if len(words) != 4 or words[3] != _digest(places):
        return Attempts()
    number, since, last = untrusted.digits(words[0], _MOST_PODS, 0), objects.moment(words[1]), objects.moment(words[2])
    return Attempts(number, since, last) if since and last else Attempts()


def delay(failures: int) -> float:
    """Seconds until the next attempt, after so many failures; at least 1."""
    return min(_LONGEST_SECONDS, START_SECONDS * (1 << min(_DOUBLED, failures - 1)))


def _digest(places: Collection[str]) -> str:
    return hashlib.sha256(",".join(sorted(set(places))).encode()).hexdigest()[:8]


def age(then: datetime, now: datetime, otherwise: float) -> float:
    """Seconds since then. A time far ahead comes from a wrong clock, and counts as long ago."""
    age = (now - then).total_seconds()
    return max(0.0, age) if age > -_CLOCKS_DIFFER_SECONDS else otherwise
