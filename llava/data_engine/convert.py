"""Convert engine records to samples with stable ids; each record is used or counted with a reason."""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import IO, Literal, get_args

from llava.data_engine.formats import DEFAULT_MODES, MODES, Exchange
from llava.data_engine.question_types import SKILLS, find_skill
from llava.data_engine.records import UNLABELLED, EngineRecord, parse_record, read_rows
from llava.data_engine.sampling import draw_evenly
from llava.data_engine.text import Unusable, digest
from llava.errors import DataError, SettingsError
from llava.image_reading import has_image
from llava.schema import Sample

logger = logging.getLogger(__name__)

Group = Literal["none", "image"]
MissingImages = Literal["skip", "warn", "error"]
# A conversation of more exchanges could outgrow the model's context; the next one goes on.
MAX_EXCHANGES = 10


@dataclass(frozen=True, slots=True)
class ConversionSettings:
    """What to convert, and how.

    Attributes:
        engine: The files of engine records. Records are numbered through all of them, in this order.
        modes: The forms that each record is converted to; see `formats.MODES`.
        group: "image" joins the exchanges of one mode about one image into conversations of at most 10.
        skills: The question types to convert, as `qtype` ids or names; None for all.
        limit: Stop after this many usable records.
        shares: By mode, the share of the records that are asked in it; all where a mode is not named.
        sample: Use as many records, drawn by seed, of which each type keeps its share; None uses all.
        seed: Of the shuffled options and of what is drawn.
        image_root: The folder that must hold the images; None does not look.
        missing_images: Without an image, "skip" the record, "warn" and use it, or stop with an "error".
    """

    engine: tuple[Path, ...]
    modes: tuple[str, ...] = DEFAULT_MODES
    group: Group = "none"
    skills: tuple[str, ...] | None = None
    limit: int | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    sample: int | None = None
    seed: int = 42
    image_root: Path | None = None
    missing_images: MissingImages = "warn"

    def __post_init__(self) -> None:
        if not self.engine:
            raise SettingsError("no file of engine records is given; name one or more", code="missing-file")
        if wrong := [mode for mode in self.modes if mode not in MODES]:
            raise SettingsError(f"no mode {wrong[0]!r}; there are: {', '.join(MODES)}", code="unknown-mode")
        if not self.modes or len(set(self.modes)) < len(self.modes):
            raise SettingsError(
                f"modes are {','.join(self.modes)!r}; wanted one or more, each once", code="repeated-mode"
            )
        if self.group not in get_args(Group):
            wanted = ", ".join(get_args(Group))
            raise SettingsError(f"group is {self.group!r}; wanted one of {wanted}", code="unknown-choice")
        if self.missing_images not in get_args(MissingImages):
            wanted = ", ".join(get_args(MissingImages))
            raise SettingsError(
                f"missing_images is {self.missing_images!r}; wanted one of {wanted}", code="unknown-choice"
            )
        for name, count in (("limit", self.limit), ("sample", self.sample)):
            if count is not None and count < 1:
                raise SettingsError(f"{name} is {count}; wanted 1 or more", code="out-of-range")
        for mode, share in self.shares.items():
            if mode not in self.modes or not 0 < share <= 1:
                raise SettingsError(
                    f"the share of mode {mode} is {share}; wanted a mode that is asked, and more than 0, at"
                    " most 1",
                    code="out-of-range",
                )
        if self.image_root is not None and not self.image_root.is_dir():
            raise SettingsError(f"{self.image_root}: no such folder of images", code="missing-folder")


@dataclass(slots=True)
class Tally:
    """Counts of one conversion, complete once all its samples have been read.

    Attributes:
        records: Records read. `used` gave an exchange; `filtered` have a skill that was not selected;
            `undrawn` are not in the sample, or drawn for no mode.
        exchanges: Questions with answers, by mode; `by_skill` and `letters` divide them further.
        absent: By mode, the records without the field that the mode needs.
        reasons: How many records or fields were refused (or noted) for each reason.
    """

    records: int = 0
    used: int = 0
    filtered: int = 0
    undrawn: int = 0
    images_missing: int = 0
    exchanges: Counter[str] = field(default_factory=Counter)
    by_skill: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    letters: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    absent: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)


class Conversion:
    """One pass over the engine files. Read all `samples` first, then `tally`.

    Every refused record or field is a line of JSON in `problems`, as soon as it is met.
    """

    def __init__(self, settings: ConversionSettings, problems: IO[str]) -> None:
        self.settings = settings
        self.tally = Tally()
        self._problems = problems
        self._seen: set[int] = set()
        self._skills = None if settings.skills is None else _skill_names(settings.skills)

    def samples(self) -> Iterator[Sample]:
        """Yield the samples in source order; with `group="image"` in the order in which images first appear.

        Raises:
            DataError: A file is broken, not one sample came out, or an image is missing and that is an error.
        """
        grouped = self.settings.group == "image"
        yield from (_join_by_image if grouped else _one_per_exchange)(self._exchanges())
        if not self.tally.exchanges:
            reasons = ", ".join(f"{reason} {n}" for reason, n in self.tally.reasons.most_common())
            files = ", ".join(map(str, self.settings.engine))
            raise DataError(
                f"{files}: not one sample in {self.tally.records} records"
                f" ({reasons or 'none refused'}; filtered out by skill: {self.tally.filtered})",
                code="no-samples",
            )

    def _exchanges(self) -> Iterator[tuple[EngineRecord, str, Exchange]]:
        tally = self.tally
        for source, index, record in self._records():
            modes = tuple(mode for mode in self.settings.modes if self._draws(mode, record))
            if not modes:
                tally.undrawn += 1
                continue
            asked = 0
            for name in modes:
                mode = MODES[name]
                exchange = mode.ask(record, self.settings.seed)
                if exchange is not None:
                    asked += 1
                    tally.exchanges[name] += 1
                    tally.by_skill[record.skill][name] += 1
                    if mode.needs == "choice":
                        tally.letters[name][exchange.answer] += 1
                    yield record, name, exchange
                elif mode.needs not in record.faults:
                    tally.absent[name] += 1
            faults = [(fault, _modes_on(needs, modes)) for needs, fault in record.faults.items()]
            faults = [(fault, lost) for fault, lost in faults if lost]
            if asked:
                tally.used += 1
                # Only now: a faulty record must not make a later, correct one its duplicate.
                self._seen.add(digest(_question(record)))
            elif not faults:
                faults = [(Unusable("nothing_to_ask", f"no field for {','.join(modes)}"), list(modes))]
            for fault, lost in faults:
                self._note(source, index, record.position, fault, lost=lost)

    def _draws(self, mode: str, record: EngineRecord) -> bool:
        share = self.settings.shares.get(mode, 1.0)
        return share == 1 or Random(f"{self.settings.seed} {mode} {record.name}").random() < share

    def _sampled(self) -> frozenset[int] | None:
        """Return the positions to use, None for all."""
        if self.settings.sample is None:
            return None
        rows = [row for source in self.settings.engine for _, row in read_rows(source)]
        if len(rows) < self.settings.sample:
            raise SettingsError(
                f"sample is {self.settings.sample:,}, but there are {len(rows):,} records",
                code="out-of-range",
            )
        kinds = [
            str(row.get("qtype", row.get("question_type"))) if isinstance(row, dict) else "" for row in rows
        ]
        return draw_evenly(kinds, self.settings.sample, self.settings.seed)

    def _records(self) -> Iterator[tuple[Path, int, EngineRecord]]:
        """Yield (file, index in it, record) for every usable record."""
        position, sampled = -1, self._sampled()
        for source in self.settings.engine:
            for index, row in read_rows(source):
                if self.tally.used == self.settings.limit:
                    return
                position += 1
                self.tally.records += 1
                if sampled is not None and position not in sampled:
                    self.tally.undrawn += 1
                    continue
                try:
                    record = parse_record(row, position)
                    if self._skills is not None and record.skill not in self._skills:
                        self.tally.filtered += 1
                        continue
                    if digest(_question(record)) in self._seen:
                        raise Unusable("duplicate", "same image and instruction as an earlier record")
                    missing = self._missing_image(record)
                except Unusable as fault:
                    self._note(source, index, position, fault, lost=list(self.settings.modes))
                    continue
                if missing:
                    self._note(source, index, position, missing, lost=[])
                yield source, index, record

    def _missing_image(self, record: EngineRecord) -> Unusable | None:
        """Return a note about a missing image whose record is used anyway."""
        root, policy = self.settings.image_root, self.settings.missing_images
        if root is None or has_image(root, record.image):
            return None
        self.tally.images_missing += 1
        if policy == "error":
            raise DataError(
                f"{root / record.image}: no such image (record {record.position});"
                " `llava layout check` says what to download",
                code="missing-image",
            )
        detail = f"no {record.image} under {root}"
        if policy == "skip":
            raise Unusable("image_not_found", detail)
        return Unusable("image_not_found_but_used", detail)

    def _note(self, source: Path, index: int, position: int, fault: Unusable, *, lost: list[str]) -> None:
        self.tally.reasons[fault.reason] += 1
        problem = {
            "file": str(source),
            "index": index,
            "n": position,
            "reason": fault.reason,
            "detail": fault.detail[:200],
            "modes_lost": lost,
        }
        self._problems.write(json.dumps(problem) + "\n")


def _question(record: EngineRecord) -> str:
    return f"{record.image}\n{record.instruction}"


def _modes_on(needs: str, modes: tuple[str, ...]) -> list[str]:
    return [name for name in modes if MODES[name].needs == needs]


def _skill_names(wanted: tuple[str, ...]) -> frozenset[str]:
    found = {label: find_skill(label) for label in wanted}
    if unknown := [label for label, skill in found.items() if skill is None]:
        there = ", ".join(f"{skill.id} {skill.name}" for skill in SKILLS)
        raise SettingsError(f"no skill {unknown[0]!r}; there are: {there}", code="unknown-skill")
    return frozenset(skill.name for skill in found.values() if skill)


def _one_per_exchange(exchanges: Iterator[tuple[EngineRecord, str, Exchange]]) -> Iterator[Sample]:
    for record, mode, exchange in exchanges:
        turns = exchange.turns(opens=True)
        yield Sample(f"engine_{mode}_{record.name}", turns, record.image, _type({record.skill}))


def _join_by_image(exchanges: Iterator[tuple[EngineRecord, str, Exchange]]) -> Iterator[Sample]:
    """Join the exchanges of the same image and mode into conversations of at most `MAX_EXCHANGES`.

    Conversations come in the order in which their image and mode first appear. A conversation's id comes from
    its first record. It has a question type only if all its questions have that type. All exchanges are held
    in memory, 1.3 kB per record with two short exchanges.

    Args:
        exchanges: (record, mode's name, question and answer in that mode) of each.
    """
    groups: dict[tuple[str, str], list[tuple[str, str, Exchange]]] = {}
    for record, mode, exchange in exchanges:
        groups.setdefault((record.image, mode), []).append((record.name, record.skill, exchange))
    for (image, mode), group in groups.items():
        for start in range(0, len(group), MAX_EXCHANGES):
            batch = group[start : start + MAX_EXCHANGES]
            turns = tuple(
                turn
                for index, (*_, exchange) in enumerate(batch)
                for turn in exchange.turns(opens=index == 0)
            )
            kind = _type({skill for _, skill, _ in batch})
            yield Sample(f"engine_{mode}_{batch[0][0]}", turns, image, kind)


def _type(skills: set[str]) -> str | None:
    """Return the question type of a conversation: the skill of all its questions, or None if they differ."""
    return next(iter(skills)) if len(skills) == 1 and UNLABELLED not in skills else None
