"""What the demo sells: the stand-in, the real MiniLM embeddings, or the user's own server."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

import httpx

from contracts.errors import SellerUnreachable, UsageError
from gateway.demo.processes import Child, Crew, wait_until

__all__ = ["ModelForSale", "model_for_sale"]

_LISTENING = re.compile(r"^listening on (http://\S+)$", re.MULTILINE)
_ASK_TIMEOUT_S = 10.0
_STAND_IN = "demo-model"


@dataclass(frozen=True, slots=True)
class ModelForSale:
    """Where the model is, the id it is sold under, and whether it embeds rather than chats."""

    upstream: str
    model: str
    description: str
    embeds: bool = False

    @property
    def route(self) -> str:
        """The route that is sold."""
        return "/v1/embeddings" if self.embeds else "/v1/chat/completions"


def model_for_sale(crew: Crew, upstream: str | None, model: str | None) -> ModelForSale:
    """Start the model server that `model` asks for, or look at the user's own.

    Raises `UsageError` for a combination without meaning, `WeightsMissing`, `SellerUnreachable` or `DemoFailed`.
    """
    if upstream is not None:
        if model == "minilm":
            raise UsageError("--model minilm brings its own server; leave --upstream out")
        base_url = upstream.rstrip("/").removesuffix("/v1")
        chosen = model or _first_model(base_url)
        return ModelForSale(base_url, chosen, f"Your own server on {base_url}, model {chosen}")
    if model == "minilm":
        from gateway.demo.minilm import MODEL_NAME, check_installed

        check_installed()
        server = _start(crew, "--minilm")
        about = f"{MODEL_NAME}, real sentence embeddings on this machine's CPU"
        return ModelForSale(_address(server), MODEL_NAME, about, embeds=True)
    if model is not None:
        raise UsageError(f"--model: expected minilm, or a model of the server named by --upstream, got {model!r}")
    server = _start(crew)
    return ModelForSale(
        _address(server), _STAND_IN, "A stand-in for a model, which answers the same question always alike"
    )


def _start(crew: Crew, *arguments: str) -> Child:
    command = [sys.executable, "-m", "gateway.demo.model_server", "--port", "0", *arguments]
    return crew.start("model-server", command)


def _address(server: Child) -> str:
    wait_until(lambda: _LISTENING.search(_log(server)) is not None, server, "it did not listen")
    found = _LISTENING.search(_log(server))
    assert found is not None
    return found[1]


def _log(server: Child) -> str:
    return server.log_file.read_text(errors="replace")


def _first_model(base_url: str) -> str:
    try:
        answer = httpx.get(f"{base_url}/v1/models", timeout=_ASK_TIMEOUT_S, trust_env=False)
        answer.raise_for_status()
        model = answer.json()["data"][0]["id"]
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SellerUnreachable(f"--upstream: {base_url}/v1/models: {error}") from None
    except (ValueError, LookupError, TypeError):
        raise UsageError(f"--upstream: {base_url}/v1/models lists no model; name one with --model") from None
    return str(model)
