"""Whether the engine has begun to serve, as it says itself.

The log alone does not tell: a user may have set another log level.
"""

import http.client
from collections.abc import Sequence

_SECONDS = 1.0
_PORT = "--port="


def port_of(command: Sequence[str]) -> int | None:
    """The port in the engine's command; None if it has none."""
    found = [word.removeprefix(_PORT) for word in command if word.startswith(_PORT)]
    return int(found[-1]) if found and found[-1].isascii() and found[-1].isdigit() else None


def has_not_begun(port: int | None) -> bool:
    """Whether the engine surely serves nobody: nothing listens, or /ready says that it is not ready.

    False if that is not known, for example because it does not answer.
    """
    if port is None:
        return False
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == http.client.SERVICE_UNAVAILABLE
    except ConnectionRefusedError:
        return True
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
