"""What comparing books with themselves and with the chain brought to light."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["DIFFERENCES_SHOWN_MAX", "Finding"]

# One cause may show in every row; a reader needs the first few and their number.
DIFFERENCES_SHOWN_MAX = 20


@dataclass(slots=True)
class Finding:
    """One thing that was compared. `found` says what stands; `differences` what does not agree, in words.

    `notes` are facts that are no contradiction: a payment still on its way, a transfer the books have yet to notice.
    """

    check: str
    found: str = ""
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything agrees."""
        return not self.differences

    def differ(self, text: str) -> None:
        """Note a contradiction. Beyond `DIFFERENCES_SHOWN_MAX` they are only counted, in the last line."""
        if len(self.differences) < DIFFERENCES_SHOWN_MAX:
            self.differences.append(text)
        elif len(self.differences) == DIFFERENCES_SHOWN_MAX:
            self.differences.append("and more like these")
