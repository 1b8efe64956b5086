"""The tables of docs/errors.md, made of the errors themselves: `python -m tests.docs.errors_page` writes them anew."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from contracts.errors import FareboxError, LocalError, LocalRefusal, PaymentRefused, RemoteError

__all__ = ["PAGE", "errors_raised", "filled"]

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"

_ROOMS = ("contracts", "registry", "buyer", "seller", "gateway")
# A file for LiteLLM's environment, what needs an extra, programs, and commands of the repository alone.
_LEFT_OUT = re.compile(r"farebox_callback$|dbos_engine$|__main__$|^contracts\.foundry")
_TOOLS = ("contracts.evm.", "gateway.demo.", "gateway.bidder.", "gateway.background.")
_ROOTS = (FareboxError, LocalError, RemoteError)
_BLOCK = re.compile(r"(<!-- begin (?P<name>[a-z_]+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)


def errors_raised() -> list[type[FareboxError]]:
    """Return every class of error that a user may meet, in the order of the source, one for each code and status."""
    for room in _ROOMS:
        for module in pkgutil.walk_packages(importlib.import_module(room).__path__, f"{room}."):
            if not _LEFT_OUT.search(module.name):
                importlib.import_module(module.name)
    named = sorted({each for each in _tree(FareboxError) if each not in _ROOTS and _is_public(each)}, key=_place)
    return list({(each.code, each.http_status): each for each in reversed(named)}.values())[::-1]


def filled(page: str) -> str:
    """Return the page with its tables as the errors are now."""
    errors = errors_raised()
    return _BLOCK.sub(lambda block: f"{block[1]}\n{_table(errors, _SECTIONS[block['name']])}\n\n{block[3]}", page)


def _tree(error: type[FareboxError]) -> Iterator[type[FareboxError]]:
    yield error
    for leaf in error.__subclasses__():
        yield from _tree(leaf)


def _place(error: type[FareboxError]) -> tuple[bool, str, int]:
    """Return where an error stands: the common tree first, then module by module."""
    return error.__module__ != "contracts.errors", error.__module__, inspect.getsourcelines(error)[1]


def _is_public(error: type[FareboxError]) -> bool:
    return error.__module__.partition(".")[0] in _ROOMS and not error.__name__.startswith("_")


def _is_tool(error: type[FareboxError]) -> bool:
    return error.__module__.startswith(_TOOLS) and not issubclass(error, RemoteError)


def _is_delegated(error: type[FareboxError]) -> bool:
    return error.__module__.startswith("gateway.delegator.")


def _is_common(error: type[FareboxError]) -> bool:
    return not _is_tool(error) and not _is_delegated(error)


_SECTIONS: dict[str, Callable[[type[FareboxError]], bool]] = {
    "own": lambda it: _is_common(it) and issubclass(it, LocalError) and not issubclass(it, LocalRefusal),
    "policy": lambda it: _is_common(it) and issubclass(it, LocalRefusal),
    "remote": lambda it: _is_common(it) and issubclass(it, RemoteError) and not issubclass(it, PaymentRefused),
    "payment": lambda it: _is_common(it) and issubclass(it, PaymentRefused),
    "delegated": _is_delegated,
    "tools": _is_tool,
}


def _table(errors: list[type[FareboxError]], belongs: Callable[[type[FareboxError]], bool]) -> str:
    rows = ["| Code | HTTP | Exit | Means | Do |", "|---|---|---|---|---|"]
    for error in errors:
        if belongs(error):
            # 500 is what an error has that only commands meet.
            status = "" if error.http_status == 500 else str(error.http_status)
            means = " ".join((inspect.getdoc(error) or "").partition("\n\n")[0].split())
            remedy = "as the message says" if error.remedy == FareboxError.remedy else error.remedy
            rows.append(f"| `{error.code}` | {status} | {error.exit_code} | {means} | {remedy} |")
    return "\n".join(rows)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text("utf-8")), "utf-8")
