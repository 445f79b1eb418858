"""Image features into token embeddings: one pure function.

Knows no model: the embedding comes in as a function, the features as blocks.
B rows, T token ids, P patches, D width, L positions once images are in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import DataError

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class SplicedBatch:
    """Rows of text and image embeddings, padded with zeros to one length."""

    embeds: torch.Tensor  # (B, L, D)
    labels: torch.Tensor  # (B, L) int64; -100 on images and padding
    mask: torch.Tensor  # (B, L) bool; False on padding
    position_ids: torch.Tensor  # (B, L) int64; from 0 in each row, 0 on padding


def splice(
    ids: torch.Tensor,
    labels: torch.Tensor | None,
    mask: torch.Tensor | None,
    embed: Callable[[torch.Tensor], torch.Tensor],
    features: Sequence[torch.Tensor],
    *,
    max_length: int | None = None,
    side: Side = "right",
) -> SplicedBatch:
    """Put one block of image features in place of each image id.

    Blocks are taken in order of the rows. A row without an image takes one block too and uses nothing of it:
    such a row comes with a blank image, so that the projector has gradients (zeros) in every batch and
    data-parallel workers agree on them.

    Args:
        ids: (B, T) token ids; -200 stands for an image.
        labels: (B, T), or None for none.
        mask: (B, T), true or 1 where `ids` counts; None for everywhere. Ids that do not count are dropped.
        embed: Token ids to embeddings, (B, T) -> (B, T, D).
        features: One (P, D) block an image; P may differ.
        max_length: Positions after which a row is cut; None for never.
        side: Where shorter rows are padded.

    Raises:
        DataError: There are more image slots than blocks, or fewer.

    Source: LLaVA v1.2.2 llava_arch.py, prepare_inputs_labels_for_multimodal.
    """
    is_image = ids == IMAGE_TOKEN_INDEX
    keep = torch.ones_like(is_image) if mask is None else mask.bool()
    images = (is_image & keep).sum(dim=1).tolist()
    _check_counts(images, len(features))

    # One look-up for the whole batch; 0 stands in where there is no word, and that place is not used.
    words = embed(ids.masked_fill(is_image, 0))
    labels = torch.full_like(ids, IGNORE_INDEX) if labels is None else labels
    blocks = iter([block.to(words.device, words.dtype) for block in features])
    rows = [
        _splice_row(ids[row][keep[row]], labels[row][keep[row]], words[row][keep[row]], blocks)
        for row in range(len(ids))
    ]
    return _pad([(embeds[:max_length], said[:max_length]) for embeds, said in rows], side)


def _splice_row(
    ids: torch.Tensor, labels: torch.Tensor, words: torch.Tensor, blocks: Iterator[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One row's (L, D) embeddings and (L,) labels, taking its blocks from `blocks`."""
    slots = (ids == IMAGE_TOKEN_INDEX).nonzero()[:, 0].tolist()
    if not slots:
        return torch.cat((words, next(blocks)[:0])), labels
    embeds, said, start = [], [], 0
    for slot in slots:
        block = next(blocks)
        embeds += [words[start:slot], block]
        said += [labels[start:slot], labels.new_full((len(block),), IGNORE_INDEX)]
        start = slot + 1
    return torch.cat([*embeds, words[start:]]), torch.cat([*said, labels[start:]])


def _pad(rows: Sequence[tuple[torch.Tensor, torch.Tensor]], side: Side) -> SplicedBatch:
    device = rows[0][0].device
    lengths = [len(embeds) for embeds, _ in rows]
    counts = [torch.arange(length, device=device) for length in lengths]
    trues = [torch.ones(length, dtype=torch.bool, device=device) for length in lengths]
    return SplicedBatch(
        embeds=pad_sequence([embeds for embeds, _ in rows], batch_first=True, padding_side=side),
        labels=pad_sequence(
            [said for _, said in rows], batch_first=True, padding_value=IGNORE_INDEX, padding_side=side
        ),
        mask=pad_sequence(trues, batch_first=True, padding_value=False, padding_side=side),
        position_ids=pad_sequence(counts, batch_first=True, padding_side=side),
    )


def _check_counts(images: Sequence[int], blocks: int) -> None:
    wanted = sum(max(count, 1) for count in images)
    if wanted == blocks:
        return
    blanks = sum(count == 0 for count in images)
    # Rows without an image take a blank one each; say so only where there are such rows.
    slots = f"{sum(images)} image slots" + (f" and {blanks} rows that need a blank image" if blanks else "")
    raise DataError(
        f"{slots} but {blocks} images in a batch of {len(images)} rows: each <image> in a text needs its "
        "image, and each image its <image>"
    )
