"""The original's m4c_evaluator: scores of short answers and captions, by `llava.benchmarks.vqa_answers`.

Each evaluator's `eval_pred_list` takes entries {"pred_answer": text, "gt_answers": [texts]} and returns the
mean score, from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llava.benchmarks import vqa_answers
from llava.errors import AnswersError
from llava.schema import JsonObject

Entries = Sequence[JsonObject]


class EvalAIAnswerProcessor:
    """Normalises an answer as EvalAI's servers do: `EvalAIAnswerProcessor()("Yes.")` is "yes"."""

    CONTRACTIONS = vqa_answers.CONTRACTIONS
    NUMBER_MAP = vqa_answers.NUMBER_WORDS
    ARTICLES = tuple(sorted(vqa_answers.ARTICLES))
    PERIOD_STRIP = vqa_answers.PERIOD
    COMMA_STRIP = vqa_answers.COMMA_IN_NUMBER
    PUNCTUATIONS = tuple(vqa_answers.PUNCTUATION)

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Create a processor; the arguments have no effect, as in the original."""

    def __call__(self, item: str) -> str:
        """Return the normalised form of `item`."""
        return vqa_answers.normalise(item)

    def word_tokenize(self, word: str) -> str:
        """Return a lower-case text without commas and question marks, and with 's apart."""
        return vqa_answers.tokenize_words(word)

    def process_punctuation(self, in_text: str) -> str:
        """Return a text with its punctuation deleted or replaced by spaces."""
        return vqa_answers.strip_punctuation(in_text)

    def process_digit_article(self, in_text: str) -> str:
        """Return a text with digits for number words, and without articles."""
        return vqa_answers.plain_words(in_text)


class TextVQAAccuracyEvaluator:
    """The mean soft accuracy of predictions against ten human answers each."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def eval_pred_list(self, pred_list: Entries) -> float:
        """Return the mean accuracy."""
        return _mean(vqa_answers.normalised_accuracy(answer, humans) for answer, humans in _pairs(pred_list))


class STVQAAccuracyEvaluator:
    """The share of predictions that equal one of the human answers, once normalised."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def eval_pred_list(self, pred_list: Entries) -> float:
        """Return the share of right answers."""
        normalise = self.answer_processor
        return _mean(
            float(normalise(answer) in [normalise(human) for human in humans])
            for answer, humans in _pairs(pred_list)
        )


class STVQAANLSEvaluator:
    """The mean ANLS: one minus the normalised edit distance to the closest human answer, 0 below one half."""

    def get_anls(self, s1: str, s2: str) -> float:
        """Return the ANLS of two texts. Two empty ones are equal; the original divides by zero there."""
        first, second = s1.lower().strip(), s2.lower().strip()
        likeness = 1 - _edit_distance(first, second) / max(len(first), len(second), 1)
        return likeness if likeness >= 0.5 else 0.0

    def eval_pred_list(self, pred_list: Entries) -> float:
        """Return the mean ANLS."""
        return _mean(
            max(self.get_anls(answer, human) for human in humans) for answer, humans in _pairs(pred_list)
        )


class TextCapsBleu4Evaluator:
    """The BLEU-4 of captions; needs `pip install pycocoevalcap` and Java."""

    def __init__(self) -> None:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

        self.tokenizer = PTBTokenizer()
        self.scorer = Bleu(4)

    def eval_pred_list(self, pred_list: Entries) -> float:
        """Return the corpus's BLEU-4."""
        pairs = list(enumerate(_pairs(pred_list)))
        truths = {index: [{"caption": human} for human in humans] for index, (_, humans) in pairs}
        answers = {index: [{"caption": answer}] for index, (answer, _) in pairs}
        tokenize = self.tokenizer.tokenize
        scores, _ = self.scorer.compute_score(tokenize(truths), tokenize(answers))
        return float(scores[3])


def _pairs(entries: Entries) -> Iterator[tuple[str, list[str]]]:
    if not entries:
        raise AnswersError("there are no predictions to evaluate", code="no-answers")
    return ((entry["pred_answer"], entry["gt_answers"]) for entry in entries)


def _mean(points: Iterator[float]) -> float:
    found = list(points)
    return sum(found) / len(found)


def _edit_distance(first: str, second: str) -> int:
    """Return the Levenshtein distance of two texts."""
    row = list(range(len(second) + 1))
    for count, letter in enumerate(first, start=1):
        above, row[0] = row[0], count
        for column, other in enumerate(second, start=1):
            replaced = above + (letter != other)
            above = row[column]
            row[column] = min(row[column] + 1, row[column - 1] + 1, replaced)
    return row[-1]
