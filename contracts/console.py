"""What every command shares: one JSON document or a human text on stdout, errors and progress on stderr, exit codes.

`NO_COLOR` and a stdout that is no terminal turn colour off (rich does both).
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from contracts.errors import FareboxError

__all__ = [
    "err",
    "error_document",
    "exit_on_error",
    "given_rpc_urls",
    "out",
    "print_document",
    "printable",
    "progress",
    "progress_bar",
]


class _Console(Console):
    """A console whose terminal nobody's words steer, wherever they stand: rich itself lets escape sequences through."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Part of rich, which brings every plain string here, those in tables too."""
        return super().render_str(printable(text), **options)


# What a redirected output fails with where its disk has no more room, or is gone.
_OUTPUT_LOST = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

out = _Console(highlight=False, soft_wrap=True)
err = _Console(stderr=True, highlight=False, soft_wrap=True)


def print_document(document: Any, *, as_json: bool, human: Callable[[], None]) -> None:
    """Print `document` as the run's one JSON document, or call `human` to print for a person."""
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")
        sys.stdout.flush()
    else:
        human()


def error_document(error: FareboxError) -> dict[str, Any]:
    """Return what `--json` prints for a failure."""
    return {"ok": False, "error": {"code": error.code, "message": error.message, "remedy": error.advice}}


@contextmanager
def exit_on_error(*, as_json: bool) -> Iterator[None]:
    """Turn a `FareboxError` into one readable line (or one JSON document) and its exit code; anything else is a bug."""
    try:
        yield
    except FareboxError as error:
        if as_json:
            print_document(error_document(error), as_json=True, human=lambda: None)
        else:
            err.print(f"[bold red]{escape(error.code)}[/]: {escape(error.message)}")
            err.print(f"[dim]{escape(error.advice)}[/]")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Whoever read our output has gone, as in `farebox receipts --json | head`.
        _discard_stdout()
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in _OUTPUT_LOST:
            raise
        err.print(f"[bold red]output[/]: {escape(os.strerror(error.errno).lower())}")
        err.print("[dim]make room, and ask for it again: what was paid for is kept[/]")
        _discard_stdout()
        raise SystemExit(1) from None


def _discard_stdout() -> None:
    """Let what Python flushes at its exit go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def given_rpc_urls(given: list[str] | None) -> list[str]:
    """Return the endpoints of `--rpc`, else of `FAREBOX_RPC` (separated by commas or spaces)."""
    from contracts.environment import Environment

    return given or Environment().rpc_urls


def progress(text: str) -> None:
    """Say on stderr what is happening now, so that stdout stays one document."""
    err.print(f"[dim]{escape(text)}[/]")


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr, on a terminal only; what is given takes how much of how much is done."""
    from rich.progress import Progress

    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def printable(text: str) -> str:
    """Return `text` without what could steer a terminal or turn the reading direction; lines stay lines."""
    return "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)
