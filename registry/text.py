"""Text of strangers: names, descriptions and tags of sellers, made harmless before it is stored.

It is shown to a person, escaped where it is printed, and never handed to a model. Source: Unicode NFKC (UAX #15), bidi
controls (UAX #9).
"""

from __future__ import annotations

import unicodedata

__all__ = ["clean"]

# NFKC may make eighteen characters of one; what is cut before keeps that from costing anything.
_EXPANSION = 4
# More marks than this on one letter are drawn over the lines above and below.
_MARKS_MAX = 2


def clean(value: object, length_max: int) -> str:
    """Return at most `length_max` printable characters of `value` on one line; "" for anything that is not text.

    Normalised (NFKC), without control characters, escape sequences, bidi controls, zero-width and private characters;
    every run of white space is one space.
    """
    if not isinstance(value, str):
        return ""
    text = unicodedata.normalize("NFKC", value[: length_max * _EXPANSION])
    kept: list[str] = []
    marks = 0
    for character in text:
        category = unicodedata.category(character)
        if category[0] == "Z" or character in "\t\n\r\v\f":
            kept.append(" ")
        elif category[0] == "C":
            continue
        elif category[0] == "M":
            marks += 1
            if marks <= _MARKS_MAX:
                kept.append(character)
            continue
        else:
            kept.append(character)
        marks = 0
    return " ".join("".join(kept).split())[:length_max].rstrip()
