"""Put image features into token embeddings, as a padded batch or as one packed row.

Pure functions: the embedding is passed as a function, the features as one block per image.
Shapes: B rows, T token ids, P patches, D width, L positions with images in place.
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
    position_ids: torch.Tensor  # (B, L) int64; counted from 0 in each row, 0 on padding


@dataclass(frozen=True, slots=True)
class PackedRow:
    """The samples of a batch in a single row without padding; L is the sum of their lengths."""

    embeds: torch.Tensor  # (1, L, D)
    labels: torch.Tensor  # (1, L) int64; -100 on images and on the first position of each sample
    position_ids: torch.Tensor  # (1, L) int64; counted from 0 in each sample
    lengths: list[int]  # positions of each sample; empty samples are left out


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
    """Replace each image id by its image's features and pad the rows to one length.

    Blocks are used in order. A row without an image also uses up one block, of which nothing is kept: such a
    row comes with a blank image, so that the projector has (zero) gradients in every batch and all
    data-parallel ranks reduce the same parameters.

    Args:
        ids: (B, T) token ids; -200 stands for an image.
        labels: (B, T), or None for no labels.
        mask: (B, T), true or 1 where `ids` are valid; None if all are. Other ids are dropped.
        embed: Maps token ids to embeddings, (B, T) -> (B, T, D).
        features: One (P, D) block per image; P may differ between images.
        max_length: The positions after which a row is cut; None never cuts.
        side: The side on which shorter rows are padded.

    Raises:
        DataError: The numbers of image slots and blocks differ.

    Source: LLaVA v1.2.2 llava_arch.py, prepare_inputs_labels_for_multimodal.
    """
    return _pad(_splice_rows(ids, labels, mask, embed, features, max_length), side)


def splice_packed(
    ids: torch.Tensor,
    labels: torch.Tensor | None,
    mask: torch.Tensor | None,
    embed: Callable[[torch.Tensor], torch.Tensor],
    features: Sequence[torch.Tensor],
    *,
    max_length: int | None = None,
) -> PackedRow:
    """Do the same as `splice`, but concatenate the rows instead of padding them."""
    return _pack(_splice_rows(ids, labels, mask, embed, features, max_length))


def count_slots(ids: torch.Tensor, mask: torch.Tensor | None) -> list[int]:
    """Count the image slots in each row of (B, T) ids that `mask` keeps."""
    is_slot = ids == IMAGE_TOKEN_INDEX
    counts: list[int] = (is_slot if mask is None else is_slot & mask.bool()).sum(dim=1).tolist()
    return counts


def check_image_count(slots: Sequence[int], blocks: int) -> None:
    """Check that there is one block (or image) for each slot and for each row without a slot.

    Raises:
        DataError: There are more or fewer.
    """
    wanted = sum(max(count, 1) for count in slots)
    if wanted == blocks:
        return
    blanks = sum(count == 0 for count in slots)
    needed = f"{sum(slots)} image slots" + (f" and {blanks} rows that need a blank image" if blanks else "")
    raise DataError(
        f"{needed} but {blocks} images in a batch of {len(slots)} rows: each <image> in a text needs its "
        "image, and each image its <image>",
        code="image-count",
    )


Row = tuple[torch.Tensor, torch.Tensor]  # (L, D) embeddings and (L,) labels


def _splice_rows(
    ids: torch.Tensor,
    labels: torch.Tensor | None,
    mask: torch.Tensor | None,
    embed: Callable[[torch.Tensor], torch.Tensor],
    features: Sequence[torch.Tensor],
    max_length: int | None,
) -> list[Row]:
    check_image_count(count_slots(ids, mask), len(features))
    is_image = ids == IMAGE_TOKEN_INDEX
    keep = torch.ones_like(is_image) if mask is None else mask.bool()

    # One look-up for the whole batch. The embedding of id 0 at image slots is not used.
    words = embed(ids.masked_fill(is_image, 0))
    labels = torch.full_like(ids, IGNORE_INDEX) if labels is None else labels
    blocks = iter([block.to(words.device, words.dtype) for block in features])
    rows = [
        _splice_row(ids[row][keep[row]], labels[row][keep[row]], words[row][keep[row]], blocks)
        for row in range(len(ids))
    ]
    return [(embeds[:max_length], row_labels[:max_length]) for embeds, row_labels in rows]


def _splice_row(
    ids: torch.Tensor, labels: torch.Tensor, words: torch.Tensor, blocks: Iterator[torch.Tensor]
) -> Row:
    """Splice one row, using up its blocks from `blocks`."""
    slots = (ids == IMAGE_TOKEN_INDEX).nonzero()[:, 0].tolist()
    if not slots:
        return torch.cat((words, next(blocks)[:0])), labels
    embeds, spliced_labels, start = [], [], 0
    for slot in slots:
        block = next(blocks)
        embeds += [words[start:slot], block]
        spliced_labels += [labels[start:slot], labels.new_full((len(block),), IGNORE_INDEX)]
        start = slot + 1
    return torch.cat([*embeds, words[start:]]), torch.cat([*spliced_labels, labels[start:]])


def _pad(rows: Sequence[Row], side: Side) -> SplicedBatch:
    device = rows[0][0].device
    lengths = [len(embeds) for embeds, _ in rows]
    counts = [torch.arange(length, device=device) for length in lengths]
    trues = [torch.ones(length, dtype=torch.bool, device=device) for length in lengths]
    return SplicedBatch(
        embeds=pad_sequence([embeds for embeds, _ in rows], batch_first=True, padding_side=side),
        labels=pad_sequence(
            [labels for _, labels in rows], batch_first=True, padding_value=IGNORE_INDEX, padding_side=side
        ),
        mask=pad_sequence(trues, batch_first=True, padding_value=False, padding_side=side),
        position_ids=pad_sequence(counts, batch_first=True, padding_side=side),
    )


def _pack(rows: Sequence[Row]) -> PackedRow:
    lengths = [len(embeds) for embeds, _ in rows]
    device = rows[0][0].device
    first = rows[0][1].new_full((1,), IGNORE_INDEX)
    return PackedRow(
        embeds=torch.cat([embeds for embeds, _ in rows])[None],
        labels=torch.cat([piece for _, labels in rows if len(labels) for piece in (first, labels[1:])])[None],
        position_ids=torch.cat([torch.arange(length, device=device) for length in lengths])[None],
        lengths=[length for length in lengths if length],
    )
