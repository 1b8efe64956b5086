"""How the demo tells what happens: a numbered story for a person, or nothing at all when a program reads the result."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from rich.markup import escape
from rich.table import Table

from contracts.console import out, progress

__all__ = ["Teller"]

# A long command is broken the way a shell reads it back.
_COLUMNS = 88
_CONTINUED = " \\\n       "


class Teller:
    """Tells the story on stdout. `silent` keeps stdout for the one JSON document and tells the steps on stderr."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self._steps = 0

    def step(self, title: str) -> None:
        """Open the next chapter."""
        self._steps += 1
        if self._silent:
            progress(f"{self._steps} {title}")
        else:
            out.print(f"\n[bold cyan]{self._steps}[/]  [bold]{escape(title)}[/]")

    def say(self, text: str) -> None:
        """Tell one line."""
        if not self._silent:
            out.print(f"   {escape(text)}")

    def command(self, *arguments: str) -> None:
        """Show a command as a user would type it."""
        lines = textwrap.wrap(shlex.join(arguments), _COLUMNS, break_long_words=False, break_on_hyphens=False)
        if not self._silent:
            out.print(f"   [green]$ {escape(_CONTINUED.join(lines))}[/]")

    def output(self, text: str) -> None:
        """Show what a command printed."""
        for line in text.strip().splitlines():
            if not self._silent:
                out.print(f"   [dim]{escape(line)}[/]")

    def waiting(self, text: str) -> AbstractContextManager[object]:
        """Show on a terminal that something is being waited for."""
        return nullcontext() if self._silent or not out.is_terminal else out.status(f"[dim]{escape(text)}[/]")

    def table(self, rows: Sequence[tuple[str, str]], *, amounts: bool = False) -> None:
        """Show names and values in two columns; `amounts` end in one line."""
        if self._silent:
            return
        grid = Table.grid(padding=(0, 3))
        grid.add_column(style="dim")
        grid.add_column(justify="right" if amounts else "left")
        for name, value in rows:
            grid.add_row(f"   {name}", value)
        out.print(grid)

    def verdict(self, text: str, *, good: bool) -> None:
        """Say how it ended."""
        if not self._silent:
            out.print(f"\n   [bold {'green' if good else 'red'}]{escape(text)}[/]")
