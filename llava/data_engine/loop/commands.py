"""The sub-commands split, pool, plan, score and status of `llava engine`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llava.data_engine.loop.plan import make_plan, plan_table
from llava.data_engine.loop.pool import describe_pool, make_pool
from llava.data_engine.loop.score import describe_score, read_before, score_base, score_round
from llava.data_engine.loop.similarity import MEASURES
from llava.data_engine.loop.split import SHARES, describe_split, make_split, read_parts
from llava.data_engine.loop.status import list_status
from llava.scoring.metrics import read_scores

METRICS_HELP = "a metrics.json of the guiding benchmark, or its folder"


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add these sub-commands; each parsed one has a function `command`."""
    split = commands.add_parser("split", help="cut the guiding benchmark into guide, hold-out and frozen")
    split.add_argument("rounds", type=Path, help="the folder of all rounds")
    split.add_argument("metrics", type=Path, help=METRICS_HELP)
    split.add_argument("--seed", type=int, default=42, help="of the cut (default 42)")
    split.add_argument(
        "--shares", type=_numbers, default=SHARES, help="of guide, hold-out, frozen (default 0.4,0.4,0.2)"
    )
    split.add_argument("--paper", action="store_true", help="guide and report on all questions, as published")
    split.set_defaults(command=_split)

    pool = commands.add_parser("pool", help="a model's bad cases per type, without look-alikes")
    pool.add_argument("round", type=Path, help="the round's folder, such as rounds/1")
    pool.add_argument("metrics", type=Path, help=METRICS_HELP)
    pool.add_argument("--measure", choices=MEASURES, default="tfidf", help="of similarity (default tfidf)")
    pool.add_argument("--threshold", type=float, help="of similarity (default: the measure's own)")
    pool.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting for the new round.toml",
    )
    pool.set_defaults(command=_pool)

    plan = commands.add_parser("plan", help="how many requests each type gets, and what they could show")
    plan.add_argument("round", type=Path, help="the round's folder")
    plan.add_argument(
        "--compare", type=Path, help="metrics.json of another run: how many answers change between two runs"
    )
    plan.set_defaults(command=_plan)

    score = commands.add_parser("score", help="what the model trained on a round does on the hold-out")
    score.add_argument("round", type=Path, help="the round's folder; with --base the folder of all rounds")
    score.add_argument("metrics", type=Path, help=METRICS_HELP)
    score.add_argument(
        "--base", action="store_true", help="the metrics are the base model's, before any round"
    )
    score.set_defaults(command=_score)

    status = commands.add_parser("status", help="where every round stands")
    status.add_argument("rounds", type=Path, help="the folder of all rounds")
    status.set_defaults(command=_status)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _split(arguments: argparse.Namespace) -> None:
    scores = read_scores(arguments.metrics)
    split = make_split(
        arguments.rounds, scores, seed=arguments.seed, shares=arguments.shares, paper=arguments.paper
    )
    _print(describe_split(split, scores))


def _pool(arguments: argparse.Namespace) -> None:
    pool = make_pool(
        arguments.round,
        arguments.metrics,
        measure=arguments.measure,
        threshold=arguments.threshold,
        changes=arguments.set,
    )
    _print(describe_pool(pool))


def _plan(arguments: argparse.Namespace) -> None:
    _print(plan_table(make_plan(arguments.round, compare=arguments.compare)))


def _score(arguments: argparse.Namespace) -> None:
    rounds, before = arguments.round, None
    if arguments.base:
        found = score_base(rounds, arguments.metrics)
    else:
        rounds = arguments.round.parent
        found, before = score_round(arguments.round, arguments.metrics), read_before(rounds)
    _print(describe_score(found, before, paper=read_parts(rounds).paper))


def _status(arguments: argparse.Namespace) -> None:
    _print(list_status(arguments.rounds))
