"""The results as Markdown for people and JSON for programs. Ratios are of medians of one run: above 1 is faster than the real client."""

import statistics
from collections.abc import Sequence
from typing import Any

from e2e.bench.rows import ROWS, Row
from e2e.bench.run import Results

OURS, PEER, DISK = "ours", "JuiceFS 1.4.2", "plain disk"


def ratio(results: Results, row: Row) -> float:
    """The real client's median seconds over ours."""
    return statistics.median(results[row.name, PEER].wall) / statistics.median(results[row.name, OURS].wall)


def markdown(results: Results, title: str, notes: Sequence[str], rows: Sequence[Row] = ROWS) -> str:
    """A table: median seconds (least–most), CPU seconds of the client, the ratio and its bar."""
    lines = [
        f"## {title}",
        "",
        "| row | ours, s | CPU s | JuiceFS 1.4.2, s | CPU s | plain disk, s | times faster | bar |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.name]
        for name in (OURS, PEER):
            measured = results[row.name, name]
            cells += [_spread(measured.wall), f"{statistics.median(measured.cpu):.2f}"]
        reached = ratio(results, row)
        cells += [
            _spread(results[row.name, DISK].wall),
            f"**{reached:.2f}**{'' if reached >= row.bar else ' ✗'}",
            f"{row.bar:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])


def document(results: Results, notes: Sequence[str], rows: Sequence[Row] = ROWS) -> dict[str, Any]:
    """The same as JSON, with every single figure."""
    return {
        "rows": [
            {
                "name": row.name,
                "bar": row.bar,
                "ratio": ratio(results, row),
                "seconds": {name: results[row.name, name].wall for name in (OURS, PEER, DISK)},
                "cpu_seconds": {name: results[row.name, name].cpu for name in (OURS, PEER)},
            }
            for row in rows
        ],
        "notes": list(notes),
    }


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"
