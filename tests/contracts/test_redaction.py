"""Whatever logs through us, masks what looks like a secret: our own loggers, libraries, and tracebacks."""

from __future__ import annotations

import subprocess
import sys

from tests.patience import PATIENCE_S

SPEAKS = """
import logging
from contracts.redaction import log_to_stderr
log_to_stderr(logging.INFO)
logging.getLogger("farebox.gateway").warning("asking %s", "https://user:hunter2@node.example/v3/TOKEN123?key=KEY456")
logging.getLogger("aiohttp").info("sent %s", {"PAYMENT-SIGNATURE": "eyJ4NDAyVmVyc2lvbiI6Mn0="})
try:
    raise RuntimeError("key " + "ab" * 32)
except RuntimeError:
    logging.getLogger("asyncio").exception("a task failed")
said = "no\\n2026-01-01 INFO farebox.gateway all is paid\\r\\x1b[2J\\x9b"
logging.getLogger("farebox.gateway").warning("the seller says %s", said)
try:
    raise RuntimeError(said)
except RuntimeError:
    logging.getLogger("asyncio").exception("said again")
"""


def test_a_process_that_logs_to_stderr_tells_no_secret() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SPEAKS], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert "node.example" in done.stderr
    assert "RuntimeError: key ***" in done.stderr
    for secret in ("hunter2", "TOKEN123", "KEY456", "eyJ4NDAy", "ab" * 32):
        assert secret not in done.stderr


def test_what_others_say_makes_no_line_of_the_log_and_steers_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SPEAKS], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    (line,) = [line for line in done.stderr.split("\n") if "the seller says" in line]
    assert "all is paid" in line
    assert "Traceback (most recent call last):\n" in done.stderr
    assert not {"\x1b", "\r", "\x9b"} & set(done.stderr)
