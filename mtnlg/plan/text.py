"""Bytes and tables for a terminal."""

import math

SHORT = 1_000_000  # bytes that are written out


def size(num_bytes: int) -> str:
    """Written out if short, else in a unit that leaves at most four digits."""
    if num_bytes < SHORT:
        return f"{num_bytes:,} B"
    power = min(int(math.log(num_bytes, 1024)), 5)
    return f"{num_bytes / 1024**power:,.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')[power]}"


def table(rows: list[tuple[str, ...]], aligned: str) -> list[str]:
    """Rows as lines with aligned columns, two spaces apart; `aligned`: < or > for each column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, aligned, widths, strict=True)).rstrip() for row in rows]
