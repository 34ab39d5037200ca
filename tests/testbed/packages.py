"""Debian packages of the test bed. They are installed only if missing, without questions, and start no service."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.testbed.cache import StepFailed, locked, run_step

# A program or file that the test bed needs -> its package. The check is for the file, so that a machine keeps a runc
# from another source.
NEEDED = {
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "iptables": "iptables",
    "nft": "nftables",
    "conntrack": "conntrack",
    "ipset": "ipset",
    "socat": "socat",
    "ip": "iproute2",
    "gcc": "gcc",
    "readelf": "binutils",
    "curl": "curl",
}
# What the gateway's proxy needs, also in the unit tests.
PROXY = {
    "nginx": "nginx-light",
    "/usr/lib/nginx/modules/ngx_http_lua_module.so": "libnginx-mod-http-lua",
    "/usr/share/lua/5.1/cjson/util.lua": "lua-cjson",
}
POLICY = Path("/usr/sbin/policy-rc.d")


def ensure_packages(needed: Mapping[str, str] = NEEDED) -> None:
    """Installs what is missing of `needed`. Raises StepFailed if it cannot (not root, no apt, no network)."""
    with locked("apt"):
        missing = sorted({package for name, package in needed.items() if not _present(name)})
        if not missing:
            return
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            names = " ".join(missing)
            raise StepFailed(f"the packages {names} are missing, and only root on Debian can install them")
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run_step("refreshing apt's package lists", ["apt-get", "update", "-q"], env=quiet)
        with _services_stay_down():
            run_step(
                f"installing {' '.join(missing)}",
                ["apt-get", "install", "-q", "-y", "--no-install-recommends", *missing],
                env=quiet,
                log="apt-install",
            )


def _present(name: str) -> bool:
    return Path(name).exists() if name.startswith("/") else shutil.which(name) is not None


@contextmanager
def _services_stay_down() -> Iterator[None]:
    """Inside this block packages start no service. A policy that the machine already has is not changed."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
