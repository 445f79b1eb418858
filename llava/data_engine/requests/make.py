"""Turn a round's plan into requests.jsonl: `llava engine requests rounds/1`.

Everything random comes from the round's seed: the same inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from llava.data_engine.cleaning.image_hashes import BenchmarkImages
from llava.data_engine.cleaning.references import (
    find_benchmark_image,
    image_key,
    list_benchmark_images,
    read_benchmarks,
)
from llava.data_engine.loop.plan import PLAN_FILE, plan_counts, read_plan
from llava.data_engine.loop.pool import STEP as POOL_STEP
from llava.data_engine.loop.pool import read_pool
from llava.data_engine.loop.round import (
    REQUESTS,
    RETRIEVED,
    ROUND_FILE,
    RoundSettings,
    find_rounds,
    read_settings,
    require_unchanged,
)
from llava.data_engine.question_types import SKILLS, find_skill
from llava.data_engine.requests.choice import (
    ImagePicker,
    Neighbours,
    is_near_turn,
    read_neighbours,
    take_turns,
)
from llava.data_engine.requests.facts import ImageFacts
from llava.data_engine.requests.images import ImageNames, find_images
from llava.data_engine.requests.rendering import PromptTemplate
from llava.data_engine.requests.rows import read_request_rows
from llava.data_engine.requests.versions import copy_templates, current_version, template_path
from llava.data_engine.requests.writing import RequestDraft, RequestSettings, RequestWriter
from llava.errors import DataError, SettingsError
from llava.files import write_jsonl
from llava.schema import JsonObject
from llava.scoring.metrics import read_scores

logger = logging.getLogger(__name__)

_TEXT_UNDERSTANDING = SKILLS[8]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestsReport:
    """What was made: requests by type, and images passed over by reason."""

    requests: Counter[str]
    planned: int
    near: int
    template: str
    left_out: Counter[str]
    unknown: Counter[Path]
    blank: int


def make_requests(folder: Path, settings: RequestSettings) -> RequestsReport:
    """Write a round's requests.jsonl from its plan, and return what was made.

    Raises:
        DataError: An input is missing, damaged, or has changed since the step before read it; or there are
            fewer images than requests. Nothing is written then.
        SettingsError: There is no such template, or the round's arm asks no model.
    """
    own, plan, pool = read_settings(folder), read_plan(folder), read_pool(folder)
    if own.arm == RETRIEVED:
        raise SettingsError(
            f"{folder / ROUND_FILE}: the arm {RETRIEVED!r} asks no model; run `llava engine retrieve`",
            code="other-arm",
        )
    counts = plan_counts(folder, plan, pool)
    copy_templates(folder.parent)
    version = current_version(folder.parent, settings.template)
    template = PromptTemplate(template_path(folder.parent, version.name), version.text)
    names = find_images(settings.images, settings.image_root)
    facts = ImageFacts(names)
    facts.read(settings.sources)
    allowed, left_out = _allowed_images(folder, own, settings, names, facts, pool)
    known = list_benchmark_images(settings.eval_root)
    find_copy = BenchmarkImages(known, settings.image_root).find if known else None
    picker = ImagePicker(allowed, find_copy, Random(f"{own.seed} {own.round} {own.arm} images"))
    neighbours = None
    if settings.near and settings.features and settings.case_features:
        neighbours = read_neighbours(
            settings.features, settings.case_features, settings.images, names.by_path,
            allowed=frozenset(allowed), most=settings.most_near,
        )  # fmt: skip
    drafts = _choose(own, counts, pool, settings, facts, picker, neighbours)
    missing = Counter(counts) - Counter(draft.type for draft in drafts)
    left_out.update({f"same picture as in {name}": count for name, count in picker.copies.items()})
    if missing and not settings.fewer:
        raise DataError(
            f"{settings.images}: too few images for {folder / PLAN_FILE}: none for"
            f" {', '.join(f'{count} requests of {name}' for name, count in missing.items())};"
            f" left out: {describe_counts(left_out)}; add images, plan fewer requests, or give --fewer",
            code="too-few-images",
        )
    if not drafts:
        raise DataError(f"{folder / PLAN_FILE}: no request to make", code="no-requests")
    writer = RequestWriter(folder, own, settings, facts, template, version)
    write_jsonl(folder / REQUESTS, map(writer.row, drafts))
    return RequestsReport(
        requests=Counter(draft.type for draft in drafts),
        planned=sum(counts.values()),
        near=sum(draft.near is not None for draft in drafts),
        template=f"{version.name} {version.version}",
        blank=facts.blank,
        left_out=left_out,
        unknown=facts.unknown,
    )


def _allowed_images(
    folder: Path,
    own: RoundSettings,
    settings: RequestSettings,
    names: ImageNames,
    facts: ImageFacts,
    pool: JsonObject,
) -> tuple[list[str], Counter[str]]:
    """Return the images that may be asked about, and how many may not, by reason."""
    metrics = Path(pool["metrics"]["path"])
    require_unchanged(metrics, pool["metrics"]["sha256"], step=POOL_STEP)
    questions = read_benchmarks(settings.eval_root)
    if not questions:
        logger.warning(
            "%s: no benchmark there: only the guiding one's images are kept out", settings.eval_root
        )
    known = {
        image_key(verdict.image): pool["benchmark"]
        for verdict in read_scores(metrics).verdicts
        if verdict.image
    }
    known |= {image_key(one.image): name for name, asked in questions.items() for one in asked if one.image}
    used = _used_images(folder, own)
    allowed, left_out = [], Counter[str]()
    for name in names.all:
        if benchmark := find_benchmark_image(known, name, facts.coco_id(name)):
            left_out[f"image of {benchmark}"] += 1
        elif name in used:
            left_out["used in an earlier round"] += 1
        elif not settings.attach and not facts.knows(name):
            left_out["nothing known about it"] += 1
        else:
            allowed.append(name)
    return allowed, left_out


def _used_images(folder: Path, own: RoundSettings) -> set[str]:
    """Return the images of the same arm's requests in earlier rounds."""
    found: set[str] = set()
    for other in find_rounds(folder.parent):
        settings = read_settings(other)
        if settings.arm == own.arm and settings.round < own.round and (other / REQUESTS).is_file():
            found |= {str(row.get("image")) for _, row in read_request_rows(other / REQUESTS)}
    return found


def _choose(
    own: RoundSettings,
    counts: Mapping[str, int],
    pool: JsonObject,
    settings: RequestSettings,
    facts: ImageFacts,
    picker: ImagePicker,
    neighbours: Neighbours | None,
) -> list[RequestDraft]:
    """Return a draft of each request that there is an image for, the types taking turns."""
    fits: dict[str, Callable[[str], bool]] = dict.fromkeys(counts, lambda _: True)
    if settings.sources.ocr:
        fits |= {name: facts.has_texts for name in counts if find_skill(name) == _TEXT_UNDERSTANDING}
    decks = {fit: picker.deck(fit) for fit in fits.values()}
    turns = list(enumerate(take_turns(counts)))
    asked: Counter[str] = Counter()
    found: dict[int, RequestDraft] = {}
    # Types that only some images fit choose first.
    for place, name in sorted(turns, key=lambda turn: fits[turn[1]] != facts.has_texts):
        number = asked[name]
        asked[name] += 1
        seed = _seed(f"{own.seed} {own.round} {own.arm} {name} {number}")
        random = Random(seed)
        known = pool["types"].get(name, {}).get("cases", [])
        cases = random.sample(known, min(own.cases_per_request, len(known)))
        near = next((case for case in cases if case.get("image")), None)
        image = None
        if neighbours and near and is_near_turn(number, settings.near):
            around = [one for one in neighbours.near(near["image"]) if fits[name](one)]
            image = picker.take(random.sample(around, len(around)))
        if image is None:
            near, image = None, picker.take(decks[fits[name]])
        if image is not None:
            found[place] = RequestDraft(name, seed, cases, image, near)
    return [found[place] for place in sorted(found)]


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


def describe_counts(counts: Counter[str]) -> str:
    """Return counted reasons as "3 image of seed, 1 used in an earlier round"."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common()) or "none"


def summarize_requests(report: RequestsReport) -> str:
    """Return one line: what was read, made and left out."""
    total = sum(report.requests.values())
    line = (
        f"requests: {total:,} of {report.planned:,} planned, {len(report.requests)} types,"
        f" {report.near:,} near a bad case's image; template {report.template};"
        f" images left out: {describe_counts(report.left_out)}"
    )
    unknown = {path: count for path, count in report.unknown.items() if count}
    line += "".join(f"; {count:,} images of {path} are not there" for path, count in unknown.items())
    return line + (f"; {report.blank:,} blank texts" if report.blank else "")
