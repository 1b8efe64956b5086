"""What `--keep` shows when the story is over, and the wait for Ctrl-C."""

from __future__ import annotations

import json
import time
from contextlib import suppress

from gateway.demo.story import Stage
from gateway.demo.teller import Teller

__all__ = ["keep_running"]

_WATCH_S = 0.5


def keep_running(stage: Stage, teller: Teller) -> None:
    """Tell how to go on, and return on Ctrl-C. Raises `DemoFailed` when a part ends by itself."""
    teller.step("Yours now, until Ctrl-C")
    teller.table([(name.replace("_", " "), address) for name, address in stage.addresses.items()])
    teller.say("")
    teller.say("With curl:")
    for line in _curl(stage):
        teller.output(line)
    teller.say("With Python:")
    for line in _python(stage):
        teller.output(line)
    with suppress(KeyboardInterrupt):
        while True:
            stage.crew.check_alive()
            time.sleep(_WATCH_S)


def _curl(stage: Stage) -> list[str]:
    body: dict[str, object] = {"model": stage.client_model}
    if stage.embeds:
        path, body["input"] = "embeddings", "hello"
    else:
        path, body["messages"] = "chat/completions", [{"role": "user", "content": "hello"}]
    return [
        f"curl {stage.client_url}/{path} -H 'authorization: Bearer {stage.client_key}' \\",
        f"  -H 'content-type: application/json' -d '{json.dumps(body)}'",
    ]


def _python(stage: Stage) -> list[str]:
    if stage.embeds:
        call = f'client.embeddings.create(model="{stage.client_model}", input="hello")'
    else:
        messages = '[{"role": "user", "content": "hello"}]'
        call = f'client.chat.completions.create(model="{stage.client_model}", messages={messages})'
    return [
        "import openai",
        f'client = openai.OpenAI(base_url="{stage.client_url}", api_key="{stage.client_key}")',
        f"print({call})",
    ]
