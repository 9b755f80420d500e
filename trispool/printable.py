"""Text of unknown origin for a terminal. Pure."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """`text` with all that a terminal might obey in place of showing it written out: `\\x1b`, `\\n`, …"""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )
