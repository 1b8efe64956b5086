"""A `farebox` for shells that is forked from a warm process: what is typed after one another starts in no time."""

from __future__ import annotations

import json
import socketserver
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.warm import Warm

__all__ = ["warm_farebox"]

_COMMAND = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as warm:
    warm.connect({address!r})
    order = {{"pid": os.getpid(), "words": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
    warm.sendall(json.dumps(order).encode() + b"\\n")
    sys.exit(int(warm.makefile().readline()))
"""


@contextmanager
def warm_farebox(warm: Warm) -> Iterator[Path]:
    """Give a folder whose `farebox` runs as any other: its words, folder, variables, stdout, stderr and exit code."""

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    class Turn(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            order = json.loads(self.rfile.readline())
            out, err = (Path(f"/proc/{order['pid']}/fd/{number}") for number in (1, 2))
            started = warm.start(
                order["words"], Path(order["folder"]), out, errors=err, environment=order["environment"]
            )
            self.wfile.write(b"%d\n" % (warm.wait(started) % 256))

    # A socket's address has room for a hundred characters, which pytest's folders may fill.
    with tempfile.TemporaryDirectory(prefix="farebox-shell-") as text:
        folder = Path(text)
        address = str(folder / "warm")
        with Server(address, Turn) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            (folder / "farebox").write_text(_COMMAND.format(python=sys.executable, address=address))
            (folder / "farebox").chmod(0o700)
            yield folder
            server.shutdown()
