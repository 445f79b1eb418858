"""Short names for runs that lie in folders."""

from __future__ import annotations

from collections.abc import Sequence


def shortest(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """The fewest last parts that tell the paths apart, joined by slashes; all of them if nothing does."""
    depths = range(1, max(map(len, paths)) + 1)
    for names in (["/".join(parts[-depth:]) for parts in paths] for depth in depths):
        if len(set(names)) == len(names):
            return names
    return ["/".join(parts) for parts in paths]
