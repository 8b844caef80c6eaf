"""Tables and sizes as the real client prints them. Pure."""

from collections.abc import Iterable, Sequence
from typing import Final

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size_text(count: int) -> str:
    """Bytes in the largest unit of 1024 that leaves at least one: `512 B`, `1.5 KiB`, `20 GiB`."""
    if count < 0:
        return "-" + size_text(-count)
    unit = 0
    while count >= 1 << 10 * (unit + 1) and unit < len(_UNITS) - 1:
        unit += 1
    if not unit:
        return f"{count} B"
    tenths = (count * 10 + (1 << 10 * unit) // 2) >> 10 * unit
    return f"{tenths / 10:.1f} {_UNITS[unit]}" if tenths < 100 else f"{(tenths + 5) // 10} {_UNITS[unit]}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """Text in a frame, the head in the middle. *align* has a sign for each column: `<` left, `>` right, `#` numbers right and else left."""
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    edge = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    lines = [edge, _row(_centred(word, width) for word, width in zip(head, widths, strict=True)), edge]
    lines += [_row(_aligned(*one) for one in zip(row, widths, align, strict=True)) for row in rows]
    return "\n".join([*lines, edge])


def _aligned(cell: str, width: int, sign: str) -> str:
    return cell.rjust(width) if sign == ">" or (sign == "#" and cell.isdecimal()) else cell.ljust(width)


def _centred(word: str, width: int) -> str:
    left = (width - len(word) + 1) // 2
    return " " * left + word + " " * (width - len(word) - left)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
