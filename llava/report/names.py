"""Short names for runs, from their folders."""

from __future__ import annotations

from collections.abc import Sequence


def shortest_names(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the shortest path endings that differ, joined by slashes; whole paths if some are equal."""
    depths = range(1, max(map(len, paths)) + 1)
    for names in (["/".join(parts[-depth:]) for parts in paths] for depth in depths):
        if len(set(names)) == len(names):
            return names
    return ["/".join(parts) for parts in paths]
