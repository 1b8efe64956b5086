"""The variables of the environment that several rooms read, by name, type and default.

Secrets are not among them: a password file, a seal or a token is read once, by the one module that needs it. Variables
that replace one command's option (`FAREBOX_SIGNER`, `FAREBOX_SERVE_LISTEN`) stand in that command's help.
"""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["DEFAULT_HOME", "Environment"]

DEFAULT_HOME = "~/.farebox"


class Environment(BaseSettings):
    """`FAREBOX_…` as it stands now; a variable that is set to nothing counts as not set."""

    model_config = SettingsConfigDict(env_prefix="FAREBOX_", env_ignore_empty=True, frozen=True, extra="ignore")

    home: str | None = None
    """The buyer's folder, `~/.farebox` by default."""
    store: str | None = None
    """URL of the pool's database, where it is not a file in the folder."""
    rpc: str = ""
    """URLs of chain endpoints, separated by commas or spaces."""
    index: str | None = None
    """The registry's index file, `registry.db` in the folder by default."""
    ipfs_gateway: str | None = None
    """URL under which files on IPFS are asked for."""
    allow_network_disk: bool = False
    """Whether SQLite files may be on a network file system, because one machine alone uses them."""
    devnet_home: str | None = None
    """The folder whose `node_modules` holds the local chain's packages."""

    @property
    def home_folder(self) -> Path:
        """The buyer's folder as an absolute path; it need not exist."""
        return Path(self.home or DEFAULT_HOME).expanduser().absolute()

    @property
    def rpc_urls(self) -> list[str]:
        return self.rpc.replace(",", " ").split()
