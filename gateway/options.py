"""The options that several of the gateway's commands take, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from registry.options import Json

__all__ = ["ConfigFile", "Json"]

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="gateway.yaml; without it, the defaults.")
]
