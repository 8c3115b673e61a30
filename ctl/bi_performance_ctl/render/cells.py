"""Columns that text takes on a terminal: two for a wide character, none for one that combines."""

from __future__ import annotations

from bi_performance_wire.streams import writable


def width(text: str) -> int:
    """The columns of a line, by the Unicode tables of rich."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def shortened(text: str, columns: int) -> str:
    """Text in so many columns at the most: of a longer one its begin and its end, which both tell
    one key from another."""
    text, gap = writable(text), writable("…")
    if width(text) <= columns:
        return text
    room = columns - width(gap)
    if room <= 0:
        return _begin(text, columns)
    begin = _begin(text, room - room // 2)
    return begin + gap + _end(text, room - width(begin))


def broken(word: str, columns: int) -> list[str]:
    """A word in pieces of so many columns at the most, each of one character at the least."""
    pieces = []
    while width(word) > columns:
        piece = _begin(word, columns) or word[0]
        pieces.append(piece)
        word = word[len(piece) :]
    return [*pieces, word] if word else pieces


def _alone(character: str) -> int:
    """The columns that a character adds at the most: the selector that follows a sign can make it
    a wide one."""
    return 1 if character == "\ufe0f" else width(character)


def _begin(text: str, columns: int) -> str:
    used = 0
    for at, character in enumerate(text):
        used += _alone(character)
        if used > columns:
            return text[:at]
    return text


def _end(text: str, columns: int) -> str:
    used = 0
    for at in range(len(text) - 1, -1, -1):
        used += _alone(text[at])
        if used > columns:
            return text[at + 1 :]
    return text
