"""Adaptive Bad-case Sampling and the smallest visible gain, against published and recomputed numbers."""

from __future__ import annotations

from random import Random

import pytest

from llava.benchmarks.tasks.seed import SIZES
from llava.data_engine.loop.plan import shrink_accuracies, type_probabilities
from llava.data_engine.loop.power import questions_needed, smallest_gain
from llava.data_engine.question_types import SKILLS
from llava.scoring.intervals import Z

# MLLM-DataEngine, the LLaVA baseline's accuracies on SEED-Bench's nine image types.
BASELINE = (74.89, 68.32, 66.87, 60.94, 57.42, 49.92, 73.20, 76.13, 27.06)
SEED_SIZES = [SIZES[skill.name] for skill in SKILLS]


@pytest.mark.parametrize(
    ("alpha", "published"),
    [
        (0.5, [9.1, 10.3, 10.5, 11.4, 11.9, 12.9, 9.4, 8.9, 15.6]),
        (1.0, [7.3, 9.2, 9.6, 11.3, 12.3, 14.5, 7.8, 6.9, 21.1]),
        (0.0, [11.1] * 9),
    ],
)
def test_types_get_the_shares_of_the_papers_worked_example(alpha: float, published: list[float]) -> None:
    shares = type_probabilities([value / 100 for value in BASELINE], alpha)
    assert [round(100 * share, 1) for share in shares] == published


def test_shrinkage_moves_the_small_types_most() -> None:
    accuracies = [value / 100 for value in BASELINE]
    shrunk = shrink_accuracies(accuracies, SEED_SIZES, "moments")
    moved = [abs(new - old) for new, old in zip(shrunk, accuracies, strict=True)]
    assert max(range(9), key=lambda index: moved[index]) == 8  # Text Understanding has 85 questions
    assert 0.02 < moved[8] < 0.05
    assert max(moved[:6]) < 0.002


@pytest.mark.parametrize(
    ("n", "points", "digits"),
    [(14_233, 1.05, 2), (14_233 // 2, 1.49, 2), (1176, 3.65, 2), (85 // 2, 19, 0)],
)
def test_the_smallest_gain_is_the_one_computed_for_the_benchmarks(n: int, points: float, digits: int) -> None:
    gain = smallest_gain(n, 0.2)
    assert gain is not None
    assert round(100 * gain, digits) == points


def test_the_papers_third_round_needs_215_000_questions() -> None:
    assert questions_needed(0.0027, 0.2) == pytest.approx(215_000, rel=0.005)


@pytest.mark.parametrize(("n", "flip_rate"), [(400, 0.2), (1176, 0.1)])
def test_mcnemars_test_sees_that_gain_four_times_in_five(n: int, flip_rate: float) -> None:
    gain, random, seen = smallest_gain(n, flip_rate), Random(5), 0
    assert gain is not None
    up, trials = (flip_rate + gain) / 2, 2000
    for _ in range(trials):
        draws = [random.random() for _ in range(n)]
        gained = sum(draw < up for draw in draws)
        flipped = sum(draw < flip_rate for draw in draws)
        seen += abs(2 * gained - flipped) > Z * flipped**0.5
    assert seen / trials == pytest.approx(0.8, abs=0.03)


def test_a_gain_larger_than_the_flip_rate_takes_as_many_flips() -> None:
    # n g = (a + b sqrt(1 - g))^2 where every flip is a gain.
    assert smallest_gain(29, 0.2) == pytest.approx(0.249, abs=0.001)
    assert smallest_gain(60, 0.01) == smallest_gain(60, 0.05) == pytest.approx(0.126, abs=0.001)
    assert smallest_gain(5, 0.2) is None  # five flips may all go one way by chance
    for gain, flips in [(0.05, 0.2), (0.3, 0.2), (0.02, 0.02)]:
        assert smallest_gain(questions_needed(gain, flips), flips) == pytest.approx(gain, rel=0.02)
