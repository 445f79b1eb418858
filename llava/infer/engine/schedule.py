"""Group requests by shared prefix and order the groups in windows. Imports no torch.

Texts decide, not token ids: the first answers need not wait until the last question is encoded.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.infer.engine.requests import ImageSource, Request


@dataclass(frozen=True, slots=True)
class Group:
    """Requests that share a prefix.

    Attributes:
        requests: The requests' indices, shortest first.
        images: The images of each request; all of them are in the prefix.
    """

    requests: tuple[int, ...]
    images: tuple[ImageSource, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """Groups that are answered while one set of images is in memory.

    Attributes:
        images: The images that the groups need, each once.
        groups: The groups, sorted so that those of similar shape are neighbours.
        last: The images that no later window needs.
    """

    images: tuple[ImageSource, ...]
    groups: tuple[Group, ...]
    last: tuple[ImageSource, ...]


def plan_windows(requests: Sequence[Request], size: int) -> list[Window]:
    """Split requests into windows of up to `size` groups, in the order in which images first occur."""
    groups = _group_requests(requests)
    batches = [groups[start : start + size] for start in range(0, len(groups), size)]
    last_use = {
        image: number for number, batch in enumerate(batches) for group in batch for image in group.images
    }
    windows = []
    for number, batch in enumerate(batches):
        needed = tuple(dict.fromkeys(image for group in batch for image in group.images))
        by_shape = sorted(
            batch, key=lambda group: (len(group.requests), len(requests[group.requests[0]].prompt))
        )
        windows.append(Window(needed, tuple(by_shape), tuple(i for i in needed if last_use[i] == number)))
    return windows


def _group_requests(requests: Sequence[Request]) -> list[Group]:
    """Group requests that are equal up to their last image. A request without an image is its own group."""
    members: dict[Hashable, list[int]] = {}
    first_seen: dict[tuple[ImageSource, ...], int] = {}
    for index, request in enumerate(requests):
        first_seen.setdefault(request.images, index)
        start = request.prompt.rpartition(DEFAULT_IMAGE_TOKEN)[0]
        members.setdefault((request.images, start) if request.images else index, []).append(index)
    groups = [
        Group(
            tuple(sorted(indices, key=lambda index: len(requests[index].prompt))),
            requests[indices[0]].images,
        )
        for indices in members.values()
    ]
    return sorted(groups, key=lambda group: first_seen[group.images])
