"""The original's evaluators of short answers, under their original path."""

from __future__ import annotations

from llava.compat.vqa_evaluators import (
    EvalAIAnswerProcessor,
    STVQAAccuracyEvaluator,
    STVQAANLSEvaluator,
    TextCapsBleu4Evaluator,
    TextVQAAccuracyEvaluator,
)

__all__ = [
    "EvalAIAnswerProcessor",
    "STVQAANLSEvaluator",
    "STVQAAccuracyEvaluator",
    "TextCapsBleu4Evaluator",
    "TextVQAAccuracyEvaluator",
]
