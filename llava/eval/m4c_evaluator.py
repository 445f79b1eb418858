"""The original's m4c_evaluator, kept for old imports, on top of `llava.benchmarks.vqa_answers`.

Source of the interface: LLaVA v1.2.2 llava/eval/m4c_evaluator.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from llava.benchmarks.vqa_answers import normalise, normalised_accuracy
from llava.errors import AnswersError
from llava.schema import JsonObject


class EvalAIAnswerProcessor:
    """Normalises an answer as EvalAI's servers do: `EvalAIAnswerProcessor()("Yes.")` is "yes"."""

    def __call__(self, item: str) -> str:
        """Return the normalised form of `item`."""
        return normalise(item)


class TextVQAAccuracyEvaluator:
    """The mean soft accuracy of predictions against ten human answers each."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def eval_pred_list(self, pred_list: Sequence[JsonObject]) -> float:
        """Return the mean over entries {"pred_answer": text, "gt_answers": [ten texts]}, from 0 to 1."""
        if not pred_list:
            raise AnswersError("there are no predictions to evaluate", code="no-answers")
        points = [normalised_accuracy(entry["pred_answer"], entry["gt_answers"]) for entry in pred_list]
        return sum(points) / len(points)
