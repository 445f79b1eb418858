"""Group requests by shared prefix and order the groups in windows. Pure functions; imports no torch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from llava.constants import IMAGE_TOKEN_INDEX
from llava.infer.engine.requests import ImageSource


@dataclass(frozen=True, slots=True)
class Group:
    """Requests that share a prefix.

    Attributes:
        requests: The requests' indices.
        shared: The number of token ids in the prefix.
        images: The images of each request; all of them are in the prefix.
    """

    requests: tuple[int, ...]
    shared: int
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


def plan_windows(
    images: Sequence[tuple[ImageSource, ...]],
    ids: Sequence[Sequence[int]],
    lengths: Sequence[int],
    size: int,
) -> list[Window]:
    """Split requests into windows, in the order in which their images first occur.

    Args:
        images: Each request's images.
        ids: Each request's token ids, with -200 for an image.
        lengths: The number of positions of each prompt.
        size: The most groups in a window.
    """
    groups = _group_requests(images, ids, lengths)
    batches = [groups[start : start + size] for start in range(0, len(groups), size)]
    last_use = {
        image: number for number, batch in enumerate(batches) for group in batch for image in group.images
    }
    windows = []
    for number, batch in enumerate(batches):
        needed = tuple(dict.fromkeys(image for group in batch for image in group.images))
        by_shape = sorted(batch, key=lambda group: (len(group.requests), lengths[group.requests[0]]))
        windows.append(Window(needed, tuple(by_shape), tuple(i for i in needed if last_use[i] == number)))
    return windows


def _group_requests(
    images: Sequence[tuple[ImageSource, ...]], ids: Sequence[Sequence[int]], lengths: Sequence[int]
) -> list[Group]:
    """Group requests that are equal up to their last image. A request without an image is its own group."""
    members: dict[Hashable, list[int]] = {}
    for index, prompt in enumerate(ids):
        key: Hashable = index
        if images[index]:
            last_slot = max(place for place, token in enumerate(prompt) if token == IMAGE_TOKEN_INDEX)
            key = (images[index], tuple(prompt[: last_slot + 1]))
        members.setdefault(key, []).append(index)
    groups = [
        Group(
            tuple(sorted(indices, key=lambda index: lengths[index])),
            _count_shared([ids[index] for index in indices]),
            images[indices[0]],
        )
        for indices in members.values()
    ]
    first_seen = {group: index for index, group in reversed(list(enumerate(images)))}
    return sorted(groups, key=lambda group: first_seen[group.images])


def _count_shared(prompts: Sequence[Sequence[int]]) -> int:
    """Count the ids that all prompts start with, the common beginning of their questions included."""
    shared = 0
    for tokens in zip(*prompts, strict=False):
        if len(set(tokens)) > 1:
            break
        shared += 1
    return shared
