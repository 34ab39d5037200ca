"""The list of adapters that an engine should have, as the operator writes it into an annotation of the pod."""

import hashlib
import json
import re
from collections.abc import Sequence

WANTED_FILE = "wanted"
LOADED_FILE = "loaded"
LORA_PATHS = "--lora-paths"
ROOT = "/models/adapters/"
"""The folder of the claims with adapters. Nothing else is loaded."""
FETCHED = f"{ROOT}.fetched/"
"""The folder with the adapters that a container fetches. Others may come into it while the engine runs."""
IN_USE = ".in-use"
"""The file of a fetched adapter or model on which an engine holds a lock, so that nobody removes it."""
_MOST = 64
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9._]{0,62}[A-Za-z0-9])?", re.ASCII)


def read_list(text: str) -> dict[str, str]:
    """The folders of adapters by name, from the text of an annotation. Raises ValueError."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict) or len(value) > _MOST:
        raise ValueError("it is not a list of adapters")
    for name, folder in value.items():
        below = isinstance(folder, str) and folder.startswith(ROOT) and ".." not in folder.split("/")
        if not _NAME.fullmatch(name) or not below:
            raise ValueError("it has an entry that is no adapter")
    return value


def digest(text: str) -> str:
    """A short name for the text of an annotation."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_option(words: Sequence[str], option: str, values: Sequence[str]) -> list[str]:
    """A command line with these values of an option, in its place. Without values, the option is left out."""
    rest: list[str] = []
    place, skipping = None, False
    for word in words:
        begins = word == option or word.startswith(f"{option}=")
        skipping = word == option or (skipping and not word.startswith("--"))
        if begins and place is None:
            place = len(rest)
        if not begins and not skipping:
            rest.append(word)
    place = len(rest) if place is None else place
    given = [] if not values else [f"{option}={values[0]}"] if len(values) == 1 else [option, *values]
    return [*rest[:place], *given, *rest[place:]]
