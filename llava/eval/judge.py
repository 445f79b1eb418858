r"""Let a judge, a model behind any OpenAI-compatible server, grade a model's answers; then score them.

    JUDGE_MODEL=gpt-4-0613 llava judge mmvet llava_bench --name llava-v1.5-7b

`all` stands for every benchmark that needs a judge and has answers. A second run asks only what has no reply
yet. The key is read from OPENAI_API_KEY only.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llava import benchmarks
from llava.benchmarks.base import EVAL_ROOT, Task
from llava.benchmarks.evaluation import ModelEvaluation, require_model_name, score_file
from llava.benchmarks.judging import JudgeReply, Judging
from llava.command import run
from llava.data_engine.generation.bodies import ChatRequest, Sampling
from llava.data_engine.generation.client import Server
from llava.data_engine.generation.commands import add_money_flags, add_server_flags, read_server
from llava.data_engine.generation.generate import RoundBudget, RoundRun, describe_failures, plan_requests
from llava.data_engine.generation.ledger import Completion, Ledger, open_ledger
from llava.data_engine.generation.prices import read_price
from llava.data_engine.loop.round import LEDGER
from llava.errors import AnswersError, DataError, SettingsError, shown
from llava.schema import JsonObject, RecordId, Scores

logger = logging.getLogger("llava.judge")
MODEL_VARIABLE = "JUDGE_MODEL"
_OFFICIAL = "official"
# A reply without a grade is asked for again at a temperature that is higher by this, as in MM-Vet's notebook.
_WARMER, _WARMEST = 0.5, 2.0
_MOST_RUNS = 1_000
_LONGEST_NAME = 80

Item = tuple[RecordId, int]
"""One grade that is wanted: of the answer to a question, in a run."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Who grades, and how often.

    Attributes:
        server: Where it is served.
        sampling: Its name on the server, and how it replies first.
        budget: What it may cost.
        ledger: What it said so far.
        tries: How often it is asked for a grade until it gives one.
    """

    server: Server
    sampling: Sampling
    budget: RoundBudget
    ledger: Ledger
    tries: int

    def grade(
        self, name: str, judging: Judging, prompts: Mapping[RecordId, list[JsonObject]], *, runs: int
    ) -> dict[RecordId, list[JudgeReply]]:
        """Return the replies about each answer to the benchmark `name`, one of each run.

        What the ledger has is not asked again.

        Raises:
            DataError: The server does not reply. What it said so far is in the ledger.
            AnswersError: A reply has no grade, however often it is asked for.
            SettingsError: The budget is not enough.
        """
        graded: dict[Item, JudgeReply] = {}
        waiting: list[Item] = [(identifier, number) for number in range(runs) for identifier in prompts]
        said = dict.fromkeys(waiting, "")
        for attempt in range(self.tries):
            for item, reply in self._ask(name, waiting, prompts, attempt).items():
                said[item] = reply.text
                if grade := judging.parse(reply.text):
                    graded[item] = JudgeReply(reply.model, reply.text, grade)
            waiting = [item for item in waiting if item not in graded]
            if not waiting:
                break
        else:
            identifier, number = waiting[0]
            raise AnswersError(
                f"{name}: question {identifier}, run {number + 1}: {self.sampling.model} gave no grade in"
                f" {self.tries} tries, the last time it said {shown(said[waiting[0]])}; wanted"
                f" {judging.wanted}; {len(waiting)} grades lack: raise --tries or --max-tokens, or ask"
                " another judge",
                code="no-grade",
            )
        replies: dict[RecordId, list[JudgeReply]] = defaultdict(list)
        for identifier, number in said:
            replies[identifier].append(graded[identifier, number])
        return replies

    def _ask(
        self,
        name: str,
        items: Sequence[Item],
        prompts: Mapping[RecordId, list[JsonObject]],
        attempt: int,
    ) -> dict[Item, Completion]:
        # Runs and tries differ in their seed, so that the ledger tells their replies apart.
        requests = [
            ChatRequest(str(identifier), prompts[identifier], None, number + _MOST_RUNS * attempt, None, name)
            for identifier, number in items
        ]
        usual = self.sampling.temperature
        warm = None if usual is None else min(usual + _WARMER * attempt, _WARMEST)
        sampling = replace(self.sampling, temperature=warm)
        plans = plan_requests(requests, self.ledger, sampling, self.budget)
        asked = RoundRun(self.ledger, self.server, sampling, self.budget)
        asked.answer(plans)
        found = {item: self.ledger.find(plan.key) for item, plan in zip(items, plans, strict=True)}
        if silent := [identifier for (identifier, _), paid in found.items() if paid is None]:
            raise DataError(
                f"{name}: question {silent[0]} and {len(silent) - 1} more: no reply from {self.server.url}"
                f" ({describe_failures(asked.outcome.failed)}); run again: the other replies are kept",
                code="no-reply",
            )
        return {item: paid.completion for item, paid in found.items() if paid}


def main() -> None:
    """Judge and score each benchmark that the flags name."""
    flags = _parse_flags()
    targets = _select(flags)
    server = read_server(flags)
    price = read_price(flags.prices, flags.judge) if flags.prices else None
    budget = RoundBudget(f"judge {flags.name}", price, flags.budget)
    with open_ledger(flags.ledger or flags.eval_root / LEDGER) as ledger:
        for target, judging in targets:
            judge = Judge(server, _sampling(flags, judging), budget, ledger, flags.tries)
            judge_answers(target, judging, judge, runs=flags.runs)


def judge_answers(target: ModelEvaluation, judging: Judging, judge: Judge, *, runs: int) -> Scores:
    """Grade the answers of one evaluation, write the benchmark's file of the grades, and score it.

    Nothing is written unless every answer has its grades.
    """
    name = target.benchmark.name
    task = Task(target.root, target.split, target.benchmark.read_answers(target.merged))
    prompts = target.benchmark.judge_prompts(task)
    logger.info(f"{name}: {len(prompts)} answers, judge {judge.sampling.model}")
    replies = judge.grade(name, judging, prompts, runs=runs)
    told = re.sub(r"[^\w.-]+", "-", judge.sampling.model)[:_LONGEST_NAME]
    path = target.root / judging.file.format(name=target.name, judge=told, runs=runs)
    judging.write(task, replies, path)
    logger.info(f"wrote {path}")
    return score_file(target.benchmark, Task(target.root, target.split, ()), path, target.answers)


def _parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="llava judge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("benchmarks", nargs="+", metavar="NAME", help="mmvet, llava_bench, or all")
    add("--name", required=True, help="the judged model's name in files, as in `llava eval`")
    add("--eval-root", type=Path, default=EVAL_ROOT, help="holds the benchmarks' folders")
    judge = parser.add_argument_group("judge")
    add = judge.add_argument
    add("--judge", default=os.environ.get(MODEL_VARIABLE, ""), metavar="MODEL",
        help=f"its name on the server (default: {MODEL_VARIABLE})")  # fmt: skip
    add("--runs", type=int, default=1, help="how often each answer is graded (default %(default)s)")
    add("--tries", type=int, default=5, help="how often a grade is asked for (default %(default)s)")
    add("--temperature", default=_OFFICIAL, help="default: the benchmark's; none leaves it to the server")
    add("--max-tokens", type=int, help="of a reply (default: the benchmark's)")
    add_server_flags(parser.add_argument_group("server"))
    money = parser.add_argument_group("money")
    add_money_flags(money, work="judging this model", folder="the benchmarks' folders")
    flags = parser.parse_args()
    require_model_name(flags.name)
    if not flags.judge:
        raise SettingsError(f"no judge is named; give --judge or set {MODEL_VARIABLE}", code="missing-model")
    if not 1 <= flags.runs <= _MOST_RUNS or flags.tries < 1:
        raise SettingsError(
            f"--runs {flags.runs} --tries {flags.tries}; wanted 1 or more, and at most {_MOST_RUNS} runs",
            code="out-of-range",
        )
    return flags


def _select(flags: argparse.Namespace) -> list[tuple[ModelEvaluation, Judging]]:
    is_all = "all" in flags.benchmarks
    found = []
    for name in benchmarks.names() if is_all else dict.fromkeys(flags.benchmarks):
        target = benchmarks.evaluation_of(name, None, flags.eval_root, flags.name)
        judging = target.benchmark.judging
        if judging and (target.merged.is_file() or not is_all):
            if flags.runs > 1 and "{runs}" not in judging.file:
                raise SettingsError(f"{name}: its file holds one run; leave --runs out", code="single-run")
            found.append((target, judging))
        elif not is_all:
            logger.info(f"left out: {name} needs no judge")
    if not found:
        raise SettingsError(
            f"nothing to judge: {' '.join(flags.benchmarks)} under {flags.eval_root}; wanted a benchmark that"
            f" needs a judge, with answers of {flags.name}",
            code="nothing-to-judge",
        )
    return found


def _sampling(flags: argparse.Namespace, judging: Judging) -> Sampling:
    try:
        temperature = {_OFFICIAL: judging.temperature, "none": None}.get(flags.temperature, flags.temperature)
        return Sampling(
            model=flags.judge,
            max_tokens=judging.max_tokens if flags.max_tokens is None else flags.max_tokens,
            limit_field=flags.limit_field,
            temperature=None if temperature is None else float(temperature),
            images=False,
        )
    except ValueError:
        raise SettingsError(
            f"--temperature {flags.temperature}: wanted a number, or none", code="out-of-range"
        ) from None


if __name__ == "__main__":
    run(main)
