"""How many positions each sample takes, its image counted, and where in them its first answer begins.

Counted once for a tokenizer and a template and kept in the index's folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation
from llava.data.checks.parallel import Piece, in_pieces
from llava.data.index import FORMAT, STAMP, Samples
from llava.data.tables import read_table, write_table
from llava.prompts.labels import ANSWER_CUT_AWAY, supervise

_COUNTED = 256  # samples in a piece of work
_PROBES = 20  # samples whose ids tell one tokenizer from another

_SCHEMA = pa.schema(
    [
        ("positions", pa.int32()),
        ("first answer", pa.int32()),  # the position of the first id to be learned; -1 for none
        ("supervised", pa.int32()),  # ids to be learned
        ("problem", pa.string()),  # why nothing can be learned, however long the model reads
    ]
)


@dataclass(frozen=True, slots=True)
class Lengths:
    """What samples look like to a model, one number each; nothing is cut off.

    Attributes:
        positions: (N,) int32, ids with each image's positions.
        first_answer: (N,) int32, the position of the first id to be learned, -1 for none.
        supervised: (N,) int32, ids to be learned.
        problems: (N,) why nothing can be learned from a sample in fixed words, null for most.
    """

    positions: np.ndarray
    first_answer: np.ndarray
    supervised: np.ndarray
    problems: pa.ChunkedArray

    def at(self, places: np.ndarray) -> Lengths:
        """Those of some samples."""
        taken = self.problems.take(pa.array(places))
        return Lengths(self.positions[places], self.first_answer[places], self.supervised[places], taken)

    def problem_counts(self, max_length: int) -> dict[str, int]:
        """How many samples teach nothing to a model that reads `max_length` positions, by reason."""
        found = {pair["values"]: pair["counts"] for pair in self.problems.value_counts().to_pylist()}
        teaches = found.pop(None, 0)
        cut_away = int((self.first_answer >= max_length).sum())
        return found | ({ANSWER_CUT_AWAY: cut_away} if teaches and cut_away else {})


@dataclass(frozen=True, slots=True)
class Reading:
    """How samples become ids: what `supervise` is given, and how many positions an image takes."""

    tokenizer: Any
    template: Conversation
    image_positions: int
    mm_use_im_start_end: bool = False


def count_lengths(folder: Path, samples: Samples, reading: Reading, *, workers: int) -> Lengths:
    """Count every sample's positions, or read what was counted before.

    Args:
        folder: The index's, where the counts are kept.
        samples: All that are counted.
        reading: How they become ids.
        workers: Processes.
    """
    kept = folder / f"lengths-{_key(folder, samples, reading)}.arrow"
    table = read_table(kept, _SCHEMA)
    if table is None or len(table) != len(samples):

        def count(piece: Piece) -> list[tuple[int, int, int, str | None]]:
            return [_count(samples[place], reading) for place in range(*piece)]

        parts = in_pieces(count, len(samples), size=_COUNTED, name="token lengths", workers=workers)
        batches = [pa.record_batch(list(zip(*part, strict=True)), schema=_SCHEMA) for part in parts]
        table = pa.Table.from_batches(batches, schema=_SCHEMA)
        write_table(kept, table)
    positions, first, supervised = (np.asarray(table[place].to_numpy()) for place in range(3))
    return Lengths(positions, first, supervised, table["problem"])


def _count(sample: Any, reading: Reading) -> tuple[int, int, int, str | None]:
    made = supervise(
        sample,
        reading.template,
        reading.tokenizer,
        max_length=None,
        mm_use_im_start_end=reading.mm_use_im_start_end,
    )
    position, first, supervised = 0, -1, 0
    for index, label in zip(made.input_ids, made.labels, strict=True):
        # Nothing stands before a text's first id that it could be learned from.
        if label != IGNORE_INDEX and position > 0:
            supervised += 1
            first = position if first < 0 else first
        position += reading.image_positions if index == IMAGE_TOKEN_INDEX else 1
    return position, first, supervised, made.problem


def _key(folder: Path, samples: Samples, reading: Reading) -> str:
    """Equal only where the counts are: for the file as it is, the rows, the template and the tokenizer."""
    tokenizer = reading.tokenizer
    template = {**reading.template.dict(), "style": reading.template.sep_style.name}
    probes = [samples[place] for place in range(min(_PROBES, len(samples)))]
    parts: Iterable[Any] = (
        FORMAT,
        (folder / STAMP).read_text(encoding="utf-8"),
        template,
        (reading.template.version, reading.image_positions, reading.mm_use_im_start_end, samples.is_mended),
        (type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())),
        [_count(sample, reading) for sample in probes],
    )
    digest = hashlib.sha256(json.dumps(list(parts)).encode())
    digest.update(samples.rows.tobytes())
    return digest.hexdigest()[:16]
