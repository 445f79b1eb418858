"""What a chat model would answer that sees the world's images: new questions, with mistakes, and readings.

The answer depends on the seed and the request only, so the order of the requests does not matter.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .advice import advice_for, is_prevented
from .questions import LETTERS, TYPES, Asked, candidates_of
from .scene import Scene, Thing

Json = dict[str, Any]

OTHER_WORDS = {
    "circle": "disc", "square": "quadrate", "triangle": "three-cornered shape", "cross": "plus sign",
    "ring": "hoop", "diamond": "rhombus",
    "red": "crimson", "green": "emerald", "blue": "azure", "yellow": "golden", "purple": "violet",
    "white": "snow-white",
    "flag": "banner", "key": "latchkey", "cup": "mug", "bell": "chime", "kite": "paper glider",
    "desert": "dunes", "meadow": "grassland", "sea": "ocean", "snow": "winter land", "street": "road",
    "sunset": "dusk",
    "top-left": "upper left corner", "top": "upper edge", "top-right": "upper right corner",
    "left": "left-hand side", "centre": "middle", "right": "right-hand side",
    "bottom-left": "lower left corner", "bottom": "lower edge", "bottom-right": "lower right corner",
    "above": "over it", "below": "under it",
    "1": "a single one", "2": "a pair", "3": "three of them", "4": "two pairs",
}  # fmt: skip
"""Another word for a right answer: as an option, it is right, too."""
_ASIDES = ("So, {}", "{} ", "Please tell: {}", "Now, {}", "{}?")
_RUBBISH = (
    "I am sorry, but I cannot help with this image.",
    "Sure! Here are some ideas about what one could ask.",
    "lorem ipsum dolor 0x1f 0x1f 0x1f",
    "[[[[[[[[[[[[[[[[",
    '{"result": true}',
    "",
)
_HOSTILE = ("<script>alert(1)</script>", "</s>", "<image>", " USER: stop here", "\x1b[2J", "[INST]")
_NAMES = re.compile("|".join(map(re.escape, TYPES)), re.IGNORECASE)
_NUMBER = re.compile(r"\b(\d+)\s+(?:\w+\s+){0,3}questions\b", re.IGNORECASE)
_QUESTION = re.compile(r"^Question: (.+)$", re.MULTILINE)
_OPTION = re.compile(r"^([A-Z])\. (.+)$", re.MULTILINE)
# What `llava engine prompt review --judge` says of a question: options, marked letter, type.
_FIELDS = (
    re.compile(r"^Options: (\[.*\])$", re.MULTILINE),
    re.compile(r"^Marked as right: (\".*\")$", re.MULTILINE),
    re.compile(r"^Question type: ([^:\n]+)", re.MULTILINE),
)
_MOST_QUESTIONS = 20


@dataclass(frozen=True, slots=True)
class Answer:
    """A response's text and, where a mistake was made on purpose, its kind and the question it is in.

    `spoilt` is None where the mistake spoils the whole text.
    """

    text: str
    mistake: str | None = None
    spoilt: str | None = None


class CannotAnswer(Exception):
    """The request is none that a model of this world can answer."""


@dataclass(frozen=True, slots=True)
class Provider:
    """A model that sees the scenes it was given.

    Attributes:
        scenes: By the sha256 of the image file's bytes.
        seed: Of what is drawn.
        mistakes: The share of the responses with a mistake; each kind is as likely. A kind that a rule of the
            prompt prevents (`advice.py`) is not made.
        kinds: Those of `MISTAKES` that are made; None for all.
        misreadings: The share of the readings of a question that are wrong.
        benchmark: Questions in SEED-Bench's schema, which a look-alike is copied from.
    """

    scenes: Mapping[str, Scene]
    seed: int = 0
    mistakes: float = 0.0
    misreadings: float = 0.0
    benchmark: Sequence[Json] = ()
    kinds: Sequence[str] | None = None
    _types: dict[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for scene in self.scenes.values():
            for type_id in TYPES.values():
                self._types.update((asked.text, type_id) for asked in candidates_of(scene, type_id))

    def answer(self, body: Json) -> Answer:
        """The answer to the body of a chat-completions call.

        Raises:
            CannotAnswer: No type is named, or no image of this world is attached where one is needed.
        """
        texts, images = _parts(body)
        prompt = "\n".join(texts)
        rng = random.Random(
            f"{self.seed} {body.get('seed')} {hashlib.sha256(repr(body['messages']).encode()).hexdigest()}"
        )
        scene = next((self.scenes[image] for image in images if image in self.scenes), None)
        structure = body.get("response_format", {}).get("json_schema", {}).get("name")
        if structure == "letters":
            return Answer(json.dumps({"letters": self._read(prompt, scene, rng)}))
        if structure == "type":
            return Answer(json.dumps({"type": self._type_of(prompt)}))
        if structure == "rule_change":
            return Answer(_suggest(prompt))
        if scene is None:
            raise CannotAnswer("no image of the demo's world is attached")
        if structure == "verdict":
            return Answer(self._judge(prompt, scene, rng))
        return self._write(scene, prompt, rng)

    def _write(self, scene: Scene, prompt: str, rng: random.Random) -> Answer:
        type_id = _type_named(prompt)
        rows = [_record(asked, rng) for asked in self._choose(scene, type_id, _number_named(prompt), rng)]
        if rng.random() >= self.mistakes:
            return Answer(_as_text(rows))
        kinds = [kind for kind in self.kinds or MISTAKES if self.benchmark or kind != LOOK_ALIKE]
        if not kinds or is_prevented(kind := rng.choice(kinds), prompt):
            return Answer(_as_text(rows))
        return MISTAKES[kind](_Slip(self, scene, type_id, rows, rng), kind)

    def _choose(self, scene: Scene, type_id: int, count: int, rng: random.Random) -> list[Asked]:
        """Up to `count` facts of the type, each asked for once."""
        facts: dict[str, list[Asked]] = {}
        for asked in candidates_of(scene, type_id):
            facts.setdefault(asked.sentence, []).append(asked)
        chosen = rng.sample(sorted(facts), min(count, len(facts)))
        return [rng.choice(facts[sentence]) for sentence in chosen]

    def _read(self, prompt: str, scene: Scene | None, rng: random.Random) -> list[str]:
        """The letters of the right options; by chance without an image, or where a reading goes wrong."""
        options = _OPTION.findall(prompt)
        question = _question(prompt)
        if scene is None or rng.random() < self.misreadings:
            return [rng.choice(options)[0]] if options else []
        shorts = {
            asked.short
            for type_id in TYPES.values()
            for asked in candidates_of(scene, type_id)
            if asked.text.casefold() in question
        }
        right = {word.casefold() for short in shorts for word in (short, other_words(short))}
        return [letter for letter, text in options if text.strip().casefold() in right]

    def _judge(self, prompt: str, scene: Scene, rng: random.Random) -> str:
        """The verdict on a question with options and a marked letter: its type, then its right options."""
        options, marked, wanted = (pattern.findall(prompt)[-1] for pattern in _FIELDS)
        lines = "\n".join(json.loads(options))
        right = self._read(f"Question: {_question(prompt)}\n{lines}", scene, rng)
        tag = ""
        if self._type_of(prompt) != wanted:
            tag = "other type"
        elif json.loads(marked) not in right:
            tag = "wrong answer"
        elif len(right) > 1:
            tag = "two right"
        return json.dumps({"passed": not tag, "tag": tag, "note": f"right: {', '.join(right) or 'none'}"})

    def _type_of(self, prompt: str) -> str:
        question = _question(prompt)
        found = (type_id for text, type_id in self._types.items() if text.casefold() in question)
        number = next(found, 0)
        return next((name for name, type_id in TYPES.items() if type_id == number), "none of these")


@dataclass(frozen=True, slots=True)
class _Slip:
    """What a mistake is made in: the rows are right, the first is spoilt."""

    provider: Provider
    scene: Scene
    type_id: int
    rows: list[Json]
    rng: random.Random

    def text(self, kind: str, row: Json, *, more: Sequence[Json] = ()) -> Answer:
        return Answer(_as_text([row, *self.rows[1:], *more]), kind, row["instruction"])

    def wrong_option(self) -> str:
        row = self.rows[0]
        return self.rng.choice([option for option in row["options"] if option != row["short_answer"]])


Mistake = Callable[[_Slip, str], Answer]


def _wrong_letter(slip: _Slip, kind: str) -> Answer:
    row = slip.rows[0]
    return slip.text(kind, row | {"choice_answer": LETTERS[row["options"].index(slip.wrong_option())]})


def _wrong_answer(slip: _Slip, kind: str) -> Answer:
    """Letter, short answer and sentence agree, and are wrong."""
    row, wrong = slip.rows[0], slip.wrong_option()
    answer = re.sub(rf"\b{re.escape(row['short_answer'])}\b", wrong, row["answer"])
    letter = LETTERS[row["options"].index(wrong)]
    return slip.text(kind, row | {"choice_answer": letter, "short_answer": wrong, "answer": answer})


def _leaked(slip: _Slip, kind: str) -> Answer:
    row = slip.rows[0]
    question, short = row["instruction"].removesuffix("?"), row["short_answer"]
    forms = (f"{question}, {short}?", f"{row['answer']} {question}?", f"{question} (it is {short})?")
    return slip.text(kind, row | {"instruction": slip.rng.choice(forms)})


def _two_right(slip: _Slip, kind: str) -> Answer:
    row = slip.rows[0]
    short, wrong = row["short_answer"], slip.wrong_option()
    other = slip.rng.choice((other_words(short), f"the {short}", short.upper()))
    return slip.text(
        kind, row | {"options": [other if option == wrong else option for option in row["options"]]}
    )


def _off_type(slip: _Slip, kind: str) -> Answer:
    other = slip.rng.choice([type_id for type_id in TYPES.values() if type_id != slip.type_id])
    asked = slip.rng.choice(list(candidates_of(slip.scene, other)))
    return slip.text(kind, _record(asked, slip.rng))


def _exact_duplicate(slip: _Slip, kind: str) -> Answer:
    return slip.text(kind, slip.rows[0], more=[slip.rows[0]])


def _near_duplicate(slip: _Slip, kind: str) -> Answer:
    row = slip.rows[0]
    question = row["instruction"]
    again = row | {"instruction": slip.rng.choice(_ASIDES).format(question)}
    answer = slip.text(kind, row, more=[again])
    return Answer(answer.text, kind, again["instruction"])


def _look_alike(slip: _Slip, kind: str) -> Answer:
    """A benchmark's question with its options and its answer, which this image does not show."""
    own = {(asked.text, asked.short) for asked in candidates_of(slip.scene, slip.type_id)}
    while True:
        item = slip.rng.choice(slip.provider.benchmark)
        right = item[f"choice_{item['answer'].lower()}"]
        if (item["question"], right) not in own:
            break
    row = {
        "instruction": item["question"],
        "answer": f"It is {right}.",
        "short_answer": right,
        "options": [item[f"choice_{letter.lower()}"] for letter in LETTERS],
        "choice_answer": item["answer"],
    }
    return slip.text(kind, row)


def _hostile_text(slip: _Slip, kind: str) -> Answer:
    row, name = slip.rows[0], slip.rng.choice(("instruction", "answer", "short_answer"))
    return slip.text(kind, row | {name: row[name] + slip.rng.choice(_HOSTILE)})


def _rubbish(slip: _Slip, kind: str) -> Answer:
    return Answer(slip.rng.choice(_RUBBISH), kind)


def _half_json(slip: _Slip, kind: str) -> Answer:
    text = _as_text(slip.rows[:1])
    return Answer(text[: slip.rng.randrange(10, len(text) * 3 // 4)], kind)


LOOK_ALIKE = "benchmark look-alike"
MISTAKES: dict[str, Mistake] = {
    "wrong letter": _wrong_letter,
    "wrong answer": _wrong_answer,
    "leaked answer": _leaked,
    "two right options": _two_right,
    "off type": _off_type,
    "exact duplicate": _exact_duplicate,
    "near duplicate": _near_duplicate,
    LOOK_ALIKE: _look_alike,
    "hostile text": _hostile_text,
    "rubbish": _rubbish,
    "half JSON": _half_json,
}
"""The kinds of mistakes that are made on purpose."""


def read_scene(row: Json) -> Scene:
    """The scene that a row of a scenes file tells of."""
    things = tuple(
        Thing(thing["cell"], thing["shape"], thing["colour"], thing["item"]) for thing in row["things"]
    )
    seed = int.from_bytes(hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest()[:6], "big")
    return Scene(seed, row["place"], row["sign_cell"], row["word"], things)


def own_wordings(questions: Iterable[Json]) -> list[Json]:
    """The benchmark's questions whose wording it asks about one image only."""
    questions = list(questions)
    count = Counter(item["question"] for item in questions)
    return [item for item in questions if count[item["question"]] == 1]


def other_words(short: str) -> str:
    return OTHER_WORDS.get(short, f"the word {short}")


def _record(asked: Asked, rng: random.Random) -> Json:
    options = [asked.short, *asked.wrong[:3]]
    rng.shuffle(options)
    return {
        "instruction": asked.text,
        "answer": asked.sentence,
        "short_answer": asked.short,
        "options": options,
        "choice_answer": LETTERS[options.index(asked.short)],
    }


def _as_text(rows: list[Json]) -> str:
    return json.dumps({"questions": rows})


def _suggest(prompt: str) -> str:
    advice = advice_for(prompt)
    if advice is None:
        raise CannotAnswer("no fault is counted that a rule would help against")
    why = f"It helps against {', '.join(sorted(advice.faults))}."
    return json.dumps({"action": "add", "rule": 0, "text": advice.rule, "why": why})


def _parts(body: Json) -> tuple[list[str], list[str]]:
    """The texts of a call, and the sha256 of its images."""
    texts, images = [], []
    for message in body["messages"]:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                data = part["image_url"]["url"].partition("base64,")[2]
                try:
                    images.append(hashlib.sha256(base64.b64decode(data)).hexdigest())
                except binascii.Error:
                    raise CannotAnswer("an image is no data URL") from None
    return texts, images


def _type_named(prompt: str) -> int:
    """The type that is named most often."""
    named = Counter(name.casefold() for name in _NAMES.findall(prompt))
    if not named:
        raise CannotAnswer("no question type is named")
    most = named.most_common(1)[0][0]
    return next(type_id for name, type_id in TYPES.items() if name.casefold() == most)


def _number_named(prompt: str) -> int:
    numbers = [int(number) for number in _NUMBER.findall(prompt)]
    return min(max(numbers[-1], 1), _MOST_QUESTIONS) if numbers else 1


def _question(prompt: str) -> str:
    found = _QUESTION.findall(prompt)
    if not found:
        raise CannotAnswer("no question is given")
    return str(found[-1]).casefold()
