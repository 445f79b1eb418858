"""In which order requests are answered, and which share how much of their prompts. Pure; needs no torch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from llava.constants import IMAGE_TOKEN_INDEX
from llava.infer.engine.requests import ImageSource


@dataclass(frozen=True, slots=True)
class Group:
    """Requests (their indices) whose prompts open with the same `shared` ids, about the same images."""

    requests: tuple[int, ...]
    shared: int
    images: tuple[ImageSource, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """Groups answered with one set of images at hand, those of like shape side by side.

    `images` are all that the groups need, each once. `last` are those that no later window needs.
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
    """Windows of a few groups each, in the order in which images are first asked about.

    Args:
        images: Each request's images.
        ids: Each request's token ids, -200 where an image goes.
        lengths: How many positions each prompt takes.
        size: The most groups in a window: as many may be read in one pass, and so many images lie at hand.
    """
    groups = _groups(images, ids, lengths)
    shares = [groups[start : start + size] for start in range(0, len(groups), size)]
    last_share = {
        image: number for number, share in enumerate(shares) for group in share for image in group.images
    }
    windows = []
    for number, share in enumerate(shares):
        needed = tuple(dict.fromkeys(image for group in share for image in group.images))
        alike = sorted(share, key=lambda group: (len(group.requests), lengths[group.requests[0]]))
        windows.append(Window(needed, tuple(alike), tuple(i for i in needed if last_share[i] == number)))
    return windows


def _groups(
    images: Sequence[tuple[ImageSource, ...]], ids: Sequence[Sequence[int]], lengths: Sequence[int]
) -> list[Group]:
    """Requests that are the same up to their last image; each request without an image by itself."""
    members: dict[Hashable, list[int]] = {}
    for index, prompt in enumerate(ids):
        key: Hashable = index
        if images[index]:
            slots = [place for place, token in enumerate(prompt) if token == IMAGE_TOKEN_INDEX]
            key = (images[index], tuple(prompt[: slots[-1] + 1]))
        members.setdefault(key, []).append(index)
    groups = [
        Group(
            tuple(sorted(indices, key=lambda index: lengths[index])),
            _shared([ids[index] for index in indices]),
            images[indices[0]],
        )
        for indices in members.values()
    ]
    first_seen = {group: index for index, group in reversed(list(enumerate(images)))}
    return sorted(groups, key=lambda group: first_seen[group.images])


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """How many ids all prompts open with: the questions' common beginning counts, too."""
    shared = 0
    for tokens in zip(*prompts, strict=False):
        if len(set(tokens)) > 1:
            break
        shared += 1
    return shared
