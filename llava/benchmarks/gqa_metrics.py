"""GQA's metrics beyond accuracy: consistency, validity, plausibility, grounding, distribution.

Source: all formulas are those of the official eval.py of GQA (Hudson and Manning, CVPR 2019).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TypedDict

from llava.benchmarks import aggregate
from llava.errors import DataError
from llava.schema import Score
from llava.scoring import intervals
from llava.scoring.metrics import PERCENT

RESAMPLES = 200
SEED = 0
OBJECT_COLUMNS = 5
# Weights and corners may be rounded, as to half precision.
SLACK = 0.01
MOST_WEIGHT = 1 + SLACK
COMMON_ANSWERS = ("color", "material", "shape")
Box = tuple[float, float, float, float]
Predictions = Mapping[str, str | None]


class Annotations(TypedDict):
    """Which words of question and full answer refer to which object ids."""

    question: dict[str, str]
    fullAnswer: dict[str, str]


class GqaQuestion(TypedDict):
    """An official question record, as far as it is used."""

    question: str
    imageId: str
    isBalanced: bool
    answer: str
    types: dict[str, str]
    groups: dict[str, str | None]
    entailed: list[str]
    semantic: list[dict[str, str]]
    annotations: Annotations


class SceneGraph(TypedDict):
    """The objects of an image: id -> x, y, w, h."""

    width: int
    height: int
    objects: dict[str, dict[str, int]]


Questions = Mapping[str, GqaQuestion]
Choices = Mapping[str, Mapping[str, Sequence[str]]]
SceneGraphs = Mapping[str, SceneGraph]
Cells = Sequence[tuple[Box, float]]
"""Parts of an image, in shares of its width and height, and the attention on each."""
Attentions = Mapping[str, Cells]


def further_metrics(
    questions: Questions,
    predictions: Predictions,
    choices: Choices | None,
    scene_graphs: SceneGraphs | None,
    attentions: Attentions | None,
) -> list[Score]:
    """Compute the five metrics; a metric whose inputs are missing has a note instead of a value.

    Args:
        questions: Question id -> official record, including unbalanced questions.
        predictions: Question id -> prediction, None if the answer is missing.
        choices: Question id -> {"valid": [...], "plausible": [...]}.
        scene_graphs: Image id -> scene graph.
        attentions: Question id -> boxes with their weights, from `parse_attentions`.
    """
    balanced = {key: row for key, row in questions.items() if row["isBalanced"]}
    return [
        _consistency(balanced, questions, predictions),
        _share_among_choices("validity", "valid", balanced, predictions, choices),
        _share_among_choices("plausibility", "plausible", balanced, predictions, choices),
        _grounding(balanced, scene_graphs, attentions),
        _distribution(balanced, predictions),
    ]


def _consistency(balanced: Questions, questions: Questions, predictions: Predictions) -> Score:
    """Return the mean share of correct entailed questions over the correctly answered questions."""
    units: dict[str, float] = {}
    for key, row in balanced.items():
        entailed = [other for other in row["entailed"] if other != key]
        if not entailed or predictions[key] != row["answer"]:
            continue
        lacking = [other for other in entailed if other not in questions or other not in predictions]
        if lacking:
            return aggregate.not_available(
                "consistency", f"needs questions and predictions for entailed ones too, such as {lacking[0]}"
            )
        right = sum(predictions[other] == questions[other]["answer"] for other in entailed)
        units[key] = PERCENT * (right / len(entailed))
    if not units:
        return aggregate.not_available("consistency", "no correctly answered question entails another")
    value = sum(unit / PERCENT for unit in units.values()) / len(units) * PERCENT
    return aggregate.mean_of_units("consistency", units, value=value)


def _share_among_choices(
    name: str,
    key: str,
    balanced: Questions,
    predictions: Predictions,
    choices: Choices | None,
) -> Score:
    if choices is None:
        return aggregate.not_available(name, "needs the choices file")
    units = {}
    for identifier, row in balanced.items():
        group = COMMON_ANSWERS if "Common" in row["types"]["detailed"] else choices[identifier][key]
        units[identifier] = PERCENT * (predictions[identifier] in group)
    return aggregate.share_of_units(name, units)


def _grounding(balanced: Questions, scene_graphs: SceneGraphs | None, attentions: Attentions | None) -> Score:
    if scene_graphs is None or attentions is None:
        return aggregate.not_available("grounding", "needs attentions and scene graphs")
    points = {
        key: _attention_on_regions(row, scene_graphs[row["imageId"]], attentions[key])
        for key, row in balanced.items()
        if key in attentions and row["imageId"] in scene_graphs
    }
    if len(points) < len(balanced):
        return aggregate.not_available(
            "grounding", f"{len(balanced) - len(points)} questions lack attention or scene graph"
        )
    units = {key: PERCENT * point for key, point in points.items()}
    value = sum(points.values()) / len(points) * PERCENT
    note = "above 100 because what question and answer both name counts twice" if value > PERCENT else ""
    return aggregate.mean_of_units("grounding", units, value=value, note=note)


def _attention_on_regions(row: GqaQuestion, graph: SceneGraph, cells: Cells) -> float:
    """Return the attention on the objects that question and full answer refer to."""
    references = row["annotations"]
    pointers = [*references["question"].values(), *references["fullAnswer"].values()]
    regions = [_region(graph, pointer) for pointer in pointers]
    return sum(weight * _covered(cell, region) for region in regions for cell, weight in cells)


def parse_attentions(attentions: Mapping[str, Sequence[Sequence[float]]], where: str) -> Attentions:
    """Return boxes with weights for attention maps or for the attention on objects.

    A map is a square of weights, of which the first index is x. Objects are rows [x0, y0, x1, y1, weight].
    (The official program is told which by --objectFeatures.) Squares of five are objects if another question
    has not five of them, or if the numbers sum to more than 1, which the weights of a map cannot.

    Args:
        attentions: Question id -> map or objects; the same kind for all.
        where: The file, for error messages.

    Raises:
        DataError: An attention is neither, or its weights are no probabilities.
    """
    squares = all(len(row) == len(rows) for rows in attentions.values() for row in rows)
    fives = all(len(row) == OBJECT_COLUMNS for rows in attentions.values() for row in rows)
    is_map = squares and not (fives and any(_total(rows) > MOST_WEIGHT for rows in attentions.values()))
    if not is_map and not fives:
        raise DataError(
            f"{where}: wanted a square of weights for each question, or rows [x0, y0, x1, y1, weight]",
            code="wrong-attention",
        )
    return {key: _cells(rows, f"{where}: question {key}", is_map=is_map) for key, rows in attentions.items()}


def _total(rows: Sequence[Sequence[float]]) -> float:
    return sum(sum(row) for row in rows)


def _cells(rows: Sequence[Sequence[float]], where: str, *, is_map: bool) -> Cells:
    edge = 1.0 / max(len(rows), 1)
    cells: list[tuple[Box, float]]
    if is_map:
        cells = [
            ((edge * i, edge * j, edge * (i + 1), edge * (j + 1)), weight)
            for i, row in enumerate(rows)
            for j, weight in enumerate(row)
        ]
    else:
        cells = [((x0, y0, x1, y1), weight) for x0, y0, x1, y1, weight in rows]
        outside = [box for box, _ in cells if not all(-SLACK <= corner <= 1 + SLACK for corner in box)]
        if outside:
            raise DataError(
                f"{where}: the box {outside[0]} is not in shares of the image, from 0 to 1",
                code="wrong-attention",
            )
    total = sum(weight for _, weight in cells)
    if not total <= MOST_WEIGHT or not all(weight >= 0 for _, weight in cells):
        raise DataError(
            f"{where}: the attention has negative weights or sums to {total:.4g}, wanted at most 1",
            code="wrong-attention",
        )
    return cells


def _region(graph: SceneGraph, pointer: str) -> Box:
    thing = graph["objects"][pointer]
    width, height = graph["width"], graph["height"]
    return (
        float(thing["x"]) / width,
        float(thing["y"]) / height,
        float(thing["x"] + thing["w"]) / width,
        float(thing["y"] + thing["h"]) / height,
    )


def _covered(cell: Box, region: Box) -> float:
    """Return the share of `cell` that is inside `region`."""
    width = min(cell[2], region[2]) - max(cell[0], region[0])
    height = min(cell[3], region[3]) - max(cell[1], region[1])
    size = (cell[2] - cell[0]) * (cell[3] - cell[1])
    return max(width, 0.0) * max(height, 0.0) / size if size else 0.0


def _distribution(balanced: Questions, predictions: Predictions) -> Score:
    """Return the chi-square of predicted against true answers per answer group, / 100; lower is better."""
    rows = [
        (group, row["answer"], predictions[key])
        for key, row in balanced.items()
        if (group := row["groups"]["global"]) is not None
    ]
    if not rows:
        return aggregate.not_available("distribution", "no question has an answer group")
    value = _chi_square(rows) / PERCENT
    half = intervals.Z * math.sqrt(_resampled_variance(rows))
    score = Score("distribution", value, len(rows), better="lower", note="lower is better; not percent")
    # Resamples that are all alike, such as those of one question, tell nothing about the error.
    if not half:
        return score
    return replace(score, low=max(0.0, value - half), high=value + half, interval="bootstrap")


def _chi_square(rows: Sequence[tuple[str, str, str | None]]) -> float:
    """Return how far the predicted answers of each group are distributed from the true ones; 0 is equal.

    The mean over the groups, weighted by their sizes, of sum((predicted - true)^2 / true) over the true
    answers of a group.

    Args:
        rows: (group, true answer, prediction or None) of each question; at least one.
    """
    gold: dict[str, Counter[str]] = defaultdict(Counter)
    predicted: dict[str, Counter[str | None]] = defaultdict(Counter)
    for group, truth, guess in rows:
        gold[group][truth] += 1
        predicted[group][guess] += 1
    total, overall = 0.0, 0
    for group, answers in gold.items():
        size = answers.total()
        score = sum((predicted[group][answer] - count) ** 2 / count for answer, count in answers.items())
        total += score * size
        overall += size
    return total / overall


def _resampled_variance(rows: Sequence[tuple[str, str, str | None]]) -> float:
    """Return the bootstrap variance of the chi-square / 100 over resampled questions, with a fixed seed."""
    import random

    rng = random.Random(SEED)
    values = [_chi_square(rng.choices(rows, k=len(rows))) / PERCENT for _ in range(RESAMPLES)]
    centre = fmean(values)
    return fmean((value - centre) ** 2 for value in values)
