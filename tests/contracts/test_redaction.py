"""Whatever logs through us, masks what looks like a secret: our own loggers, libraries, and tracebacks."""

from __future__ import annotations

import subprocess
import sys

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
"""


def test_a_process_that_logs_to_stderr_tells_no_secret() -> None:
    done = subprocess.run([sys.executable, "-c", SPEAKS], capture_output=True, text=True, timeout=60, check=True)
    assert "node.example" in done.stderr
    assert "RuntimeError: key ***" in done.stderr
    for secret in ("hunter2", "TOKEN123", "KEY456", "eyJ4NDAy", "ab" * 32):
        assert secret not in done.stderr
