"""The real LiteLLM proxy, out of its own environment, in front of the gateway."""

from __future__ import annotations

import shutil
from pathlib import Path

from contracts.evm.toolchain import ToolMissing
from gateway.demo.processes import Crew, farebox_command

__all__ = ["litellm_program", "start_litellm"]

_REPOSITORY_PROGRAM = Path(__file__).resolve().parents[2] / ".venv-litellm" / "bin" / "litellm"
_MASTER_KEY = "sk-demo"
# It imports thousands of modules; on a busy machine that takes minutes.
_START_TIMEOUT_S = 240.0


def litellm_program() -> Path:
    """Return LiteLLM's command. Raises `ToolMissing` naming the make target."""
    if _REPOSITORY_PROGRAM.is_file():
        return _REPOSITORY_PROGRAM
    found = shutil.which("litellm")
    if found is None:
        raise ToolMissing(
            "the LiteLLM proxy is not installed", remedy="run `make setup-litellm`, then the same command again"
        )
    return Path(found)


def start_litellm(crew: Crew, program: Path, gateway_url: str, port: int) -> tuple[str, str]:
    """Configure and start the proxy; return the base URL for clients and their key, once it answers.

    Raises `DemoFailed`.
    """
    crew.run("litellm config", farebox_command("litellm", "config", "--out", "litellm.yaml", "--gateway", gateway_url))
    command = [str(program), "--config", "litellm.yaml", "--host", "127.0.0.1", "--port", str(port)]
    # The local price map spares it three tries at a download.
    variables = {"LITELLM_MASTER_KEY": _MASTER_KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    proxy = crew.start("litellm", command, variables=variables)
    crew.wait_ready(proxy, f"http://127.0.0.1:{port}/health/liveliness", timeout_s=_START_TIMEOUT_S)
    return f"http://127.0.0.1:{port}/v1", _MASTER_KEY
