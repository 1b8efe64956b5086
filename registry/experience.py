"""The user's own paid calls. The registry keeps no receipts; who does tells them here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from registry.reputation import PaidCall

__all__ = ["PaidCalls", "own_calls", "tell_own_calls"]

PaidCalls: TypeAlias = "Sequence[PaidCall]"
Source = Callable[[], PaidCalls]

_sources: list[Source] = []


def tell_own_calls(source: Source) -> None:
    """Ask `source` for paid calls from now on."""
    _sources.append(source)


def own_calls() -> list[PaidCall]:
    """Return what all sources tell; nothing where the registry is used alone."""
    return [call for source in _sources for call in source()]
