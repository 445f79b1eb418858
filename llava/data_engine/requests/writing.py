"""Write one request: fill the template in, and keep all that is needed to make the request again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from string import ascii_uppercase

from llava.data_engine.cleaning.references import split_question
from llava.data_engine.loop.plan import PLAN_FILE
from llava.data_engine.loop.round import RoundSettings, file_sha256
from llava.data_engine.question_types import find_skill
from llava.data_engine.requests.choice import pick_sample
from llava.data_engine.requests.facts import ImageFacts, SourceFiles
from llava.data_engine.requests.rendering import SYSTEM, USER, OwnText, PromptTemplate
from llava.data_engine.requests.versions import PromptVersion
from llava.errors import SettingsError
from llava.image_reading import open_image
from llava.schema import JsonObject

STRUCTURE = "questions"
_DIGITS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSettings:
    """How to make requests.

    Attributes:
        images: The folder of the images that may be asked about.
        image_root: The folder that image paths start from; `images` lies in it.
        eval_root: The benchmarks, whose images are never used.
        sources: The files that say what is in the images.
        template: The name of the prompt template.
        questions: How many questions to ask for in a request.
        attach: Attach the image.
        model_answers: Show the model's wrong answers to the bad cases.
        near: The share of requests about an image near a bad case's image.
        features: The features of `images`; needed for `near`.
        case_features: The features of the guiding benchmark's images; needed for `near`.
        most_near: How many images count as near.
        most_boxes: The most regions, and the most objects, that a prompt says.
        fewer: Make as many requests as there are images for, where they are fewer than planned.
    """

    images: Path
    image_root: Path
    eval_root: Path
    sources: SourceFiles = field(default_factory=SourceFiles)
    template: str = "questions"
    questions: int = 3
    attach: bool = False
    model_answers: bool = False
    near: float = 0.0
    features: Path | None = None
    case_features: Path | None = None
    most_near: int = 1000
    most_boxes: int = 50
    fewer: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.near <= 1:
            raise SettingsError(f"near is {self.near}; wanted 0 to 1", code="out-of-range")
        if min(self.questions, self.most_near, self.most_boxes) < 1:
            raise SettingsError("questions, most_near and most_boxes are 1 or more", code="out-of-range")
        if self.near and not (self.features and self.case_features):
            raise SettingsError(
                "--near needs --features and --case-features, which `llava features` writes",
                code="missing-flag",
            )


@dataclass(frozen=True, slots=True)
class RequestDraft:
    """A request before its text is written; `near` is the bad case whose image led to the image, or None."""

    type: str
    seed: int
    cases: Sequence[JsonObject]
    image: str
    near: JsonObject | None


class RequestWriter:
    """Writes the rows of one round's requests.jsonl."""

    def __init__(
        self,
        folder: Path,
        own: RoundSettings,
        settings: RequestSettings,
        facts: ImageFacts,
        template: PromptTemplate,
        version: PromptVersion,
    ) -> None:
        self._own, self._settings, self._facts, self._template = own, settings, facts, template
        self._version: JsonObject = {"name": version.name, "version": version.version}
        self._plan = file_sha256(folder / PLAN_FILE)

    def row(self, draft: RequestDraft) -> JsonObject:
        """Return the request's row.

        Raises:
            DataError: The image cannot be read, or the template asks a value for what it does not have.
        """
        row: JsonObject = {
            "round": self._own.round,
            "arm": self._own.arm,
            "type": draft.type,
            "image": draft.image,
            "image_info": self._describe(draft),
            "near": draft.near.get("question_id") if draft.near else None,
            "cases": [case.get("question_id") for case in draft.cases],
            "template": self._version,
            "questions": self._settings.questions,
            "attached": self._settings.attach,
            "model_answers": self._settings.model_answers,
            "seed": draft.seed,
            "plan": self._plan,
        }
        row |= {"messages": make_messages(self._template, row, draft.cases), "schema": STRUCTURE}
        return with_id(row)

    def _describe(self, draft: RequestDraft) -> JsonObject:
        with open_image(self._settings.image_root / draft.image) as image:
            size = image.size
        info = self._facts.describe(draft.image, self._facts.size(draft.image) or size)
        for key in ("regions", "objects"):
            if key in info:
                places = pick_sample(info[key], self._settings.most_boxes, Random(f"{draft.seed} {key}"))
                info[key] = [info[key][place] for place in places]
        return {"width": size[0], "height": size[1], **info}


def with_id(row: JsonObject) -> JsonObject:
    """Return a request's row with its id, a hash of all else."""
    text = json.dumps(row, sort_keys=True)
    return {"id": hashlib.sha256(text.encode()).hexdigest()[:_DIGITS], **row}


def make_messages(template: PromptTemplate, row: JsonObject, cases: Sequence[JsonObject]) -> list[JsonObject]:
    """Return the messages of a request: a template filled in with what the request's row says.

    Args:
        template: The template.
        row: The request's row, which needs no messages yet.
        cases: Its bad cases, as the pool has them.

    Raises:
        DataError: The template asks a value for what it does not have.
    """
    skill, info = find_skill(row["type"]), row["image_info"]
    slots = {
        "type": OwnText(skill.name) if skill else row["type"],
        "definition": OwnText(skill.definition if skill else ""),
        "cases": [_show(case, with_answer=row["model_answers"]) for case in cases],
        "questions": row["questions"],
        "attached": row["attached"],
        **{key: info.get(key, []) for key in ("regions", "objects", "captions", "texts")},
        "scene": info.get("scene"),
    }
    system, user = template.fill(slots)
    content: object = user
    if row["attached"]:
        content = [{"type": "image_path", "path": row["image"]}, {"type": "text", "text": user}]
    return [{"role": SYSTEM, "content": system}, {"role": USER, "content": content}]


def _show(case: JsonObject, *, with_answer: bool) -> JsonObject:
    """Return what a prompt says of a bad case; a letter becomes its option's text."""
    question, options = split_question(case["question"])
    texts = dict(zip(ascii_uppercase, options, strict=False))
    answer = case.get("answer") if with_answer else None
    return {
        "question": question,
        "options": list(options),
        "truth": texts.get(str(case.get("truth")), case.get("truth") or ""),
        "model_answer": texts.get(str(answer).strip(" ."), answer or ""),
    }
