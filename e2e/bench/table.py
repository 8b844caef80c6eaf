"""The results as Markdown for people and JSON for programs. Ratios are of medians of one run: above 1 is faster than the real client."""

import statistics
from collections.abc import Sequence
from typing import Any

from e2e.bench.rows import Row
from e2e.bench.run import Results

OURS, PEER, DISK = "ours", "JuiceFS 1.4.2", "plain disk"


def ratio(results: Results, row: Row) -> float:
    """The real client's median seconds over ours."""
    return statistics.median(results[row.name, PEER].wall) / statistics.median(results[row.name, OURS].wall)


def cpu_ratio(results: Results, row: Row) -> float:
    """The real client's median CPU seconds over ours."""
    ours = statistics.median(results[row.name, OURS].cpu)
    return statistics.median(results[row.name, PEER].cpu) / ours if ours else 0.0


def markdown(results: Results, title: str, notes: Sequence[str], rows: Sequence[Row], engine: str) -> str:
    """A table: median seconds (least–most), CPU seconds and peak memory of the clients, the ratio and its bar."""
    lines = [
        f"## {title}",
        "",
        "| row | ours, s | CPU s | MiB | JuiceFS 1.4.2, s | CPU s | MiB | plain disk, s | times faster | bar | CPU, times less |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.name]
        for name in (OURS, PEER):
            measured = results[row.name, name]
            cells += [
                _spread(measured.wall),
                f"{statistics.median(measured.cpu):.2f}",
                f"{statistics.median(measured.rss) / 2**20:.0f}",
            ]
        reached = ratio(results, row)
        cells += [
            _spread(results[row.name, DISK].wall),
            f"**{reached:.2f}**{'' if reached >= row.bar(engine) else ' ✗'}",
            f"{row.bar(engine):.1f}",
            f"{cpu_ratio(results, row):.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])


def document(results: Results, notes: Sequence[str], rows: Sequence[Row], engine: str) -> dict[str, Any]:
    """The same as JSON, with every single figure."""
    return {
        "rows": [
            {
                "name": row.name,
                "bar": row.bar(engine),
                "ratio": ratio(results, row),
                "cpu_ratio": cpu_ratio(results, row),
                "seconds": {name: results[row.name, name].wall for name in (OURS, PEER, DISK)},
                "cpu_seconds": {name: results[row.name, name].cpu for name in (OURS, PEER)},
                "peak_rss_bytes": {name: results[row.name, name].rss for name in (OURS, PEER)},
            }
            for row in rows
        ],
        "notes": list(notes),
    }


def _spread(values: list[float]) -> str:
    digits = 3 if statistics.median(values) < 0.5 else 2
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"
