"""The steps of the command and the notebook: preview records, convert them, mix them with base data."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from llava.data_engine.convert import Conversion, ConversionSettings, Tally
from llava.data_engine.mix import BATCH_SIZE, Mixed, Replay, each_id_once, require_base, write_samples
from llava.data_engine.question_types import SKILLS
from llava.data_engine.records import EngineRecord, parse_record, read_rows, require_records
from llava.data_engine.text import Unusable
from llava.errors import DataError
from llava.files import atomic_write, require_distinct, write_json
from llava.samples import read_samples
from llava.schema import JsonObject, Sample
from llava.temporary import name_in_errors

logger = logging.getLogger(__name__)


def require_inputs(engine: Sequence[Path], base: Path) -> None:
    """Raise an error before the work starts if an input is missing.

    Raises:
        DataError: A file is missing; the message says where to get it.
    """
    for path in engine:
        require_records(path)
    require_base(base)


def preview(engine: Path, count: int = 3) -> list[EngineRecord]:
    """Return the first `count` usable records of a file.

    Raises:
        DataError: The file is missing or broken.
    """
    found: list[EngineRecord] = []
    for position, (_, row) in enumerate(read_rows(engine)):
        if len(found) == count:
            break
        try:
            found.append(parse_record(row, position))
        except Unusable as fault:
            logger.warning("record %d of %s cannot be used: %s", position, engine, fault.reason)
    return found


def convert_files(
    settings: ConversionSettings,
    output: Path,
    *,
    base: Path | None = None,
    replay: Replay | None = None,
    report: Path | None = None,
    problems: Path | None = None,
) -> JsonObject:
    """Convert engine files into `output`, after the records of `base` if one is given.

    Args:
        settings: What to convert and how.
        output: The JSON array to write; it appears only when all went well.
        base: A LLaVA training file that comes first, unchanged.
        replay: How much of the base; None for all of it.
        report: Where the returned report is kept; beside the output (`.report.json`) when None.
        problems: Where every record or field that was not used is listed, a line each, also when nothing came
            of the conversion; beside the output (`.problems.jsonl`) when None.

    Raises:
        DataError: An input is missing or broken, or nothing in it can be used.
        SettingsError: Two of the files are one.
    """
    report = report or output.with_suffix(".report.json")
    problems = problems or output.with_suffix(".problems.jsonl")
    require_distinct((output, report, problems), (*settings.engine, base))
    started = time.perf_counter()
    failure = keep = None
    if base and replay:
        require_base(base)
        keep = replay.choose(base, _count_samples(settings))
    with atomic_write(problems) as listed:
        conversion = Conversion(settings, listed)
        try:
            mixed = write_samples(
                output,
                _converted(conversion, problems),
                base=base,
                keep=keep,
                image_root=settings.image_root,
            )
        except DataError as error:
            failure = error  # the list says what is wrong with the records
    if failure is not None:
        raise failure
    seconds = time.perf_counter() - started
    found = _report(settings, conversion.tally, mixed, output=output, base=base, problems=problems)
    if base and replay:
        found["base"] |= {"of": mixed.of, "replay": asdict(replay)}
    write_json(report, found)
    logger.info("%d samples in %.1f s (%.0f/s)", mixed.total, seconds, mixed.total / seconds)
    if conversion.tally.reasons:
        logger.warning("%s lists what was not used, or used without an image", problems)
    return found


def _count_samples(settings: ConversionSettings) -> int:
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        return sum(1 for _ in Conversion(settings, nowhere).samples())


def _converted(conversion: Conversion, problems: Path) -> Iterator[Sample]:
    """Yield the samples; they are made and listed while the output is written, which may have room left."""
    with name_in_errors(problems):
        yield from conversion.samples()


def mix_files(
    base: Path,
    samples: Sequence[Path],
    output: Path,
    *,
    replay: Replay | None = None,
    image_root: Path | None = None,
) -> Mixed:
    """Write `base`'s records, then those of the `samples` files, into `output`.

    Args:
        base: A LLaVA training file; it comes first, unchanged.
        samples: LLaVA files whose every record is checked.
        output: The JSON array to write; it appears only when all went well.
        replay: How much of the base; None for all of it.
        image_root: The folder that all image paths start from, if that is to be checked.

    Raises:
        DataError: An input is missing or broken, or ids or image folders clash.
    """
    require_distinct((output,), (*samples, base))
    require_base(base)

    def rows() -> Iterator[Sample]:
        return each_id_once(chain.from_iterable(map(read_samples, samples)))

    keep = replay.choose(base, sum(1 for _ in rows())) if replay else None
    return write_samples(output, rows(), base=base, keep=keep, image_root=image_root)


def summarize_report(report: JsonObject) -> str:
    """Return a report as a table and lines to read."""
    modes = report["settings"]["modes"]
    width = max(len(skill) for skill in ["questions of", *report["by_skill"]])
    lines = [f"{'questions of':<{width}}" + "".join(f"{mode:>10}" for mode in modes)]
    for skill, counts in [*report["by_skill"].items(), ("all", report["exchanges"])]:
        lines.append(f"{skill:<{width}}" + "".join(f"{counts.get(mode, 0):>10,}" for mode in modes))
    lines.append(f"records: {report['records']:,} read, {report['used']:,} used")
    lines += [f"  {reason}: {count:,}" for reason, count in report["reasons"].items()]
    if report["reasons"]:
        lines.append(f"  listed in {report['problems_file']}")
    base = report["base"]
    before = f"{base['records']:,} of {base['path']} + " if base else ""
    if report["undrawn"]:
        lines.append(f"records not drawn: {report['undrawn']:,}")
    lines.append(f"samples: {before}{report['added']:,} new = {report['total']:,} in {report['output']}")
    lines.append(f"expected steps: {report['expected_steps']:,} at a batch of {report['batch_size']}")
    return "\n".join(lines)


def _report(
    settings: ConversionSettings,
    tally: Tally,
    mixed: Mixed,
    *,
    output: Path,
    base: Path | None,
    problems: Path,
) -> JsonObject:
    order = {skill.name: skill.id for skill in SKILLS}
    skills = sorted(tally.by_skill, key=lambda name: (order.get(name, len(order) + 1), name))
    chosen = asdict(settings)
    chosen["image_root"] = None if settings.image_root is None else str(settings.image_root)
    return {
        "settings": chosen | {"engine": [str(path) for path in settings.engine]},
        "records": tally.records,
        "used": tally.used,
        "filtered": tally.filtered,
        "undrawn": tally.undrawn,
        "images_missing": tally.images_missing,
        "reasons": dict(sorted(tally.reasons.items())),
        "absent": {mode: tally.absent[mode] for mode in settings.modes},
        "exchanges": {mode: tally.exchanges[mode] for mode in settings.modes},
        "by_skill": {name: {mode: tally.by_skill[name][mode] for mode in settings.modes} for name in skills},
        "letters": {mode: dict(sorted(counts.items())) for mode, counts in tally.letters.items()},
        "problems_file": str(problems),
        "base": None if base is None else {"path": str(base), "records": mixed.base},
        "output": str(output),
        "added": mixed.added,
        "total": mixed.total,
        "batch_size": BATCH_SIZE,
        "expected_steps": mixed.steps,
        "sha256": mixed.sha256,
    }
