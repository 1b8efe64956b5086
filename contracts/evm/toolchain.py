"""Where the npm packages of the local chain are: anvil, solc, OpenZeppelin and the preinstalled contracts' bytes."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from contracts.errors import LocalError

__all__ = ["ToolMissing", "anvil_binary", "npm_modules", "npm_package"]

_REPOSITORY_HOME = Path(__file__).resolve().parents[2] / "config" / "devnet"
_SYSTEMS = {"linux": "linux", "darwin": "darwin", "win32": "win32"}
_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "arm64": "arm64", "aarch64": "arm64"}


class ToolMissing(LocalError):
    """A program or package of the local chain is not installed."""

    code, exit_code = "tool_missing", 2
    remedy = "run `make setup` in the repository, or name the folder that holds package.json in FAREBOX_DEVNET_HOME"


def npm_modules() -> Path:
    """Return the `node_modules` folder of the local chain; `FAREBOX_DEVNET_HOME` names another parent.

    Raises `ToolMissing` when it is not there.
    """
    home = Path(os.environ.get("FAREBOX_DEVNET_HOME") or _REPOSITORY_HOME)
    modules = home / "node_modules"
    if not modules.is_dir():
        raise ToolMissing(f"the local chain's npm packages are not installed in {home}")
    return modules


def npm_package(name: str) -> Path:
    """Return the folder of one installed npm package. Raises `ToolMissing` when it is not there."""
    folder = npm_modules() / name
    if not folder.is_dir():
        raise ToolMissing(f"the npm package {name} is not installed")
    return folder


def anvil_binary() -> Path:
    """Return anvil's native binary; `FAREBOX_ANVIL` names another one. Raises `ToolMissing`.

    npm's `bin` link is filled by an install script that we do not run, so the platform package is entered directly.
    """
    override = os.environ.get("FAREBOX_ANVIL")
    if override:
        binary = Path(override)
        remedy = "correct FAREBOX_ANVIL, or unset it and run `make setup`"
    else:
        system, machine = _SYSTEMS.get(sys.platform), _MACHINES.get(platform.machine().lower())
        if system is None or machine is None:
            raise ToolMissing(
                f"no anvil package is known for {sys.platform} on {platform.machine()}",
                remedy="install anvil yourself and name it in FAREBOX_ANVIL",
            )
        suffix = ".exe" if system == "win32" else ""
        binary = npm_package(f"@foundry-rs/anvil-{system}-{machine}") / "bin" / f"anvil{suffix}"
        remedy = ToolMissing.remedy
    if not (binary.is_file() and os.access(binary, os.X_OK)):
        raise ToolMissing(f"anvil is not an executable file at {binary}", remedy=remedy)
    return binary
