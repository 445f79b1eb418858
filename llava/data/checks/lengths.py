"""Count each sample's positions, image included, and find its first supervised position.

The counts are cached in the index's folder for each tokenizer and template.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation
from llava.data.checks.parallel import Range, map_ranges
from llava.data.index import FORMAT, STAMP, Samples
from llava.data.tables import read_table, write_table
from llava.prompts.labels import ANSWER_CUT_AWAY, supervise
from llava.schema import Sample

_COUNT_BATCH = 256  # samples a worker takes at a time
_PROBES = 20  # samples whose ids are part of the cache key

_SCHEMA = pa.schema(
    [
        ("positions", pa.int32()),
        ("first answer", pa.int32()),  # first supervised position; -1 for none
        ("supervised", pa.int32()),  # number of supervised positions
        ("problem", pa.string()),  # why the sample has no supervised position before truncation
    ]
)


@dataclass(frozen=True, slots=True)
class TokenLengths:
    """The lengths of N samples before truncation.

    Attributes:
        positions: (N,) int32, text tokens and image positions.
        first_answer: (N,) int32, the first supervised position, -1 for none.
        supervised: (N,) int32, the number of supervised positions.
        problems: (N,) the kind of problem of samples without a supervised position, else null.
    """

    positions: np.ndarray
    first_answer: np.ndarray
    supervised: np.ndarray
    problems: pa.ChunkedArray

    def select(self, indices: np.ndarray) -> TokenLengths:
        """Return the lengths of some samples, in the given order."""
        return TokenLengths(
            self.positions[indices],
            self.first_answer[indices],
            self.supervised[indices],
            self.problems.take(pa.array(indices)),
        )

    def problem_counts(self, max_length: int) -> dict[str, int]:
        """Count the samples with nothing to learn for a model of `max_length` positions, by reason."""
        counts = {pair["values"]: pair["counts"] for pair in self.problems.value_counts().to_pylist()}
        without_problem = counts.pop(None, 0)
        cut_away = int((self.first_answer >= max_length).sum())
        return counts | ({ANSWER_CUT_AWAY: cut_away} if without_problem and cut_away else {})


@dataclass(frozen=True, slots=True)
class EncodingSettings:
    """The arguments of `supervise` that all samples share, and the positions of an image."""

    tokenizer: PreTrainedTokenizerBase
    template: Conversation
    image_positions: int
    mm_use_im_start_end: bool = False


def count_lengths(
    folder: Path, samples: Samples, settings: EncodingSettings, *, workers: int
) -> TokenLengths:
    """Count every sample's positions, or read cached counts.

    Args:
        folder: The index's folder, where the counts are cached.
        samples: The samples to count.
        settings: How samples are encoded.
        workers: Number of processes.
    """
    cache = folder / f"lengths-{_cache_key(folder, samples, settings)}.arrow"
    table = read_table(cache, _SCHEMA)
    if table is None or len(table) != len(samples):

        def count(items: Range) -> list[tuple[int, int, int, str | None]]:
            return [_count(samples[index], settings) for index in range(*items)]

        counts = map_ranges(count, len(samples), size=_COUNT_BATCH, name="token lengths", workers=workers)
        batches = [pa.record_batch(list(zip(*rows, strict=True)), schema=_SCHEMA) for rows in counts]
        table = pa.Table.from_batches(batches, schema=_SCHEMA)
        write_table(cache, table)
    positions, first, supervised = (np.asarray(table[column].to_numpy()) for column in range(3))
    return TokenLengths(positions, first, supervised, table["problem"])


def _count(sample: Sample, settings: EncodingSettings) -> tuple[int, int, int, str | None]:
    made = supervise(
        sample,
        settings.template,
        settings.tokenizer,
        max_length=None,
        mm_use_im_start_end=settings.mm_use_im_start_end,
    )
    position, first, supervised = 0, -1, 0
    for index, label in zip(made.input_ids, made.labels, strict=True):
        # The first position has nothing before it to be predicted from.
        if label != IGNORE_INDEX and position > 0:
            supervised += 1
            first = position if first < 0 else first
        position += settings.image_positions if index == IMAGE_TOKEN_INDEX else 1
    return position, first, supervised, made.problem


def _cache_key(folder: Path, samples: Samples, settings: EncodingSettings) -> str:
    """Hash everything that the counts depend on: file, rows, template and tokenizer."""
    tokenizer = settings.tokenizer
    template = {**settings.template.dict(), "style": settings.template.sep_style.name}
    probes = [samples[index] for index in range(min(_PROBES, len(samples)))]
    content = [
        FORMAT,
        (folder / STAMP).read_text(encoding="utf-8"),
        template,
        (
            settings.template.version,
            settings.image_positions,
            settings.mm_use_im_start_end,
            samples.is_repaired,
        ),
        (type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())),
        [_count(sample, settings) for sample in probes],
    ]
    digest = hashlib.sha256(json.dumps(content).encode())
    digest.update(samples.rows.tobytes())
    return digest.hexdigest()[:16]
