"""Where the npm packages of the local chain are: anvil, solc, OpenZeppelin and the preinstalled contracts' bytes."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from contracts.environment import Environment
from contracts.errors import LocalError

__all__ = ["ToolMissing", "anvil_binary", "forge_binary", "npm_modules", "npm_package"]

_REPOSITORY_HOME = Path(__file__).resolve().parents[2] / "config" / "devnet"
_FORGE_MODULES = Path(__file__).resolve().parents[2] / "config" / "foundry" / "node_modules"
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
    home = Path(Environment().devnet_home or _REPOSITORY_HOME)
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
    """Return anvil's native binary; `FAREBOX_ANVIL` names another one. Raises `ToolMissing`."""
    return _binary("anvil", npm_modules, ToolMissing.remedy)


def forge_binary() -> Path:
    """Return forge's native binary; `FAREBOX_FORGE` names another one. Raises `ToolMissing`."""
    return _binary("forge", lambda: _FORGE_MODULES, "run `make test-contracts` in the repository")


def _binary(tool: str, modules: Callable[[], Path], remedy: str) -> Path:
    """Enter the platform's package: npm's `bin` link is filled by an install script that we do not run."""
    variable = f"FAREBOX_{tool.upper()}"
    override = os.environ.get(variable)
    if override:
        binary = Path(override)
        remedy = f"correct {variable}, or unset it and run `make setup`"
    else:
        system, machine = _SYSTEMS.get(sys.platform), _MACHINES.get(platform.machine().lower())
        if system is None or machine is None:
            raise ToolMissing(
                f"no {tool} package is known for {sys.platform} on {platform.machine()}",
                remedy=f"install {tool} yourself and name it in {variable}",
            )
        suffix = ".exe" if system == "win32" else ""
        binary = modules() / f"@foundry-rs/{tool}-{system}-{machine}" / "bin" / f"{tool}{suffix}"
    if not (binary.is_file() and os.access(binary, os.X_OK)):
        raise ToolMissing(f"{tool} is not an executable file at {binary}", remedy=remedy)
    return binary
