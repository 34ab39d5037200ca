"""What `helm test` asks: the operator is ready, and the gateway answers over its Service.

Usage: python3 helm-test.py OPERATOR_URL GATEWAY_URL. Exits 1 if a check failed for a whole minute, and says which.
"""

import sys
import time
import urllib.error
import urllib.request

PATIENCE_SECONDS = 60


def get(url):
    """Return (status, text); status 0 when nothing answered."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except OSError as error:
        return 0, str(error)


def is_ok(answer):
    return answer[0] == 200


def is_model_list(answer):
    """Without a key the gateway keeps its list to itself, unless it asks for none."""
    return answer[0] in (200, 401)


def passes(url, accepts):
    """Ask until the answer is right or the patience is over, and print the last answer."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        status, text = answer = get(url)
        if accepts(answer):
            print(f"ok      {url}: {status}", flush=True)
            return True
        if time.monotonic() > deadline:
            print(f"failed  {url}: {status} {text[:300]}", flush=True)
            return False
        time.sleep(2)


def main(operator, gateway):
    checks = {f"{operator}/readyz": is_ok, f"{gateway}/liveness": is_ok, f"{gateway}/v1/models": is_model_list}
    results = [passes(url, accepts) for url, accepts in checks.items()]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
