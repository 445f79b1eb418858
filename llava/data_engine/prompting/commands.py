"""The sub-commands of `llava engine prompt`: review, suggest, accept."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llava.data_engine.generation.commands import (
    add_provider_flags,
    ledger_path,
    open_run,
    read_budget,
    read_sampling,
    read_server,
)
from llava.data_engine.generation.generate import generate_round
from llava.data_engine.generation.ledger import open_ledger
from llava.data_engine.loop.round import read_settings
from llava.data_engine.prompting.accept import (
    Decision,
    candidate_path,
    decide,
    find_version,
    keep_candidate,
    put_version,
    record_candidate,
    write_candidate,
    write_trial_requests,
)
from llava.data_engine.prompting.judge import Ask, judge_by_model
from llava.data_engine.prompting.refill import make_fill
from llava.data_engine.prompting.review_page import ReviewPage
from llava.data_engine.prompting.suggest import split_rules, suggest_change
from llava.data_engine.prompting.trial import (
    TrialOutcome,
    rates_table,
    read_outcome,
    read_prompted,
    start_trial,
    sum_rates,
    trial_folder,
)
from llava.data_engine.prompting.verdicts import append_verdict
from llava.data_engine.requests.rendering import PromptTemplate
from llava.data_engine.requests.versions import current_version, template_path
from llava.errors import DataError

if TYPE_CHECKING:
    from argparse import Namespace, _SubParsersAction

PER_TYPE = 5


def add_commands(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `prompt` to the sub-commands of `llava engine`."""
    prompt = commands.add_parser("prompt", help="improve a prompt template by what it wrote")
    steps = prompt.add_subparsers(required=True, metavar="STEP")
    review = steps.add_parser("review", help="mark what is wrong with a sample of questions, in a local page")
    suggest = steps.add_parser("suggest", help="change one rule of the template, as a model suggests it")
    accept = steps.add_parser("accept", help="try the candidate, and keep it if it helps")
    for step in (review, suggest, accept):
        step.add_argument("round", type=Path, metavar="ROUND", help="the round's folder, as rounds/1")
        step.add_argument("--template", default="questions", help="its name (default %(default)s)")
        step.add_argument(
            "--image-root", type=Path, default=Path(), help="the folder that image paths start from"
        )
        add_provider_flags(step)
    for step in (review, accept):
        step.add_argument("--per-type", type=_count, default=PER_TYPE, help="requests (default %(default)s)")
        step.add_argument("--judge", action="store_true", help="let the model judge instead of a person")
    review.add_argument("--candidate", action="store_true", help="review what the candidate wrote")
    review.add_argument("--port", type=int, default=0, help="of the page (default: a free one)")
    suggest.add_argument("--by-hand", action="store_true", help="only copy the template, for you to edit")
    review.set_defaults(command=_review)
    suggest.set_defaults(command=_suggest)
    accept.set_defaults(command=_accept)


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: wanted 1 or more")
    return value


@contextmanager
def _provider(arguments: Namespace) -> Iterator[Ask]:
    """Yield a function that asks the server; what the ledger has is not asked again."""
    seed = read_settings(arguments.round).seed
    with open_run(arguments) as run:
        yield partial(run.ask, seed=seed, where=arguments.template)


def _review(arguments: Namespace) -> None:
    rounds, name = arguments.round.resolve().parent, arguments.template
    parent, folder = start_trial(arguments.round, name, arguments.per_type)
    version = find_version(rounds, name, parent)
    if arguments.candidate:
        version = record_candidate(rounds, name, parent)
        folder = trial_folder(arguments.round, name, version.version)
    outcome = _read(arguments, folder, f"{name} {version.version}")
    if not outcome.unjudged and not version.pass_rates:
        put_version(rounds, replace(version, pass_rates=outcome.rates()))


def _read(arguments: Namespace, folder: Path, title: str) -> TrialOutcome:
    """Get verdicts on the questions that have none, by the model or a person; print what there is."""
    before = read_outcome(folder)
    if before.unjudged and arguments.judge:
        _judge(arguments, folder, before)
    elif before.unjudged:
        page = ReviewPage(
            before.unjudged,
            arguments.image_root,
            lambda verdict: append_verdict(folder, verdict),
            title=f"{title}: {len(before.unjudged)} questions",
        )
        with suppress(KeyboardInterrupt):
            page.serve(arguments.port, lambda address: _say(f"open {address} in a browser; Ctrl-C ends it"))
    outcome = read_outcome(folder)
    passed, of = sum_rates(outcome.rates())
    _say(rates_table({"passed": outcome.rates()}))
    _say(
        f"{folder}: {passed} of {of} questions passed, {len(outcome.judged) - len(before.judged)} judged now,"
        f" {len(outcome.unjudged)} left"
    )
    return outcome


def _judge(arguments: Namespace, folder: Path, outcome: TrialOutcome) -> None:
    sampling = read_sampling(arguments)
    with _provider(arguments) as ask:
        verdicts = judge_by_model(outcome.unjudged, ask, sampling.model, attached=sampling.images)
    for verdict in verdicts:
        append_verdict(folder, verdict)


def _suggest(arguments: Namespace) -> None:
    rounds, name = arguments.round.resolve().parent, arguments.template
    version, _ = read_prompted(arguments.round, name)
    parent = find_version(rounds, name, version)
    if arguments.by_hand:
        path = write_candidate(rounds, name, parent.text)
        _say(f"edit {path}, then run `llava engine prompt accept {arguments.round}`")
        return
    outcome = read_outcome(trial_folder(arguments.round, name, version))
    failures = [(item, verdict) for item, verdict in outcome.judged if not verdict.passed]
    rules = split_rules(parent.text, template_path(rounds, name))
    with _provider(arguments) as ask:
        change = suggest_change(rules, failures, ask, seed=read_settings(arguments.round).seed)
    path = write_candidate(rounds, name, rules.apply(change).render())
    new = record_candidate(rounds, name, version, note=change.why)
    rule = change.rule or len(rules.rules) + 1
    _say(f"{path}: version {new.version}: {change.action} rule {rule}: {change.text or '(removed)'}")
    _say(f"why: {change.why or '-'}")


def _accept(arguments: Namespace) -> None:
    rounds, name = arguments.round.resolve().parent, arguments.template
    parent, folder = start_trial(arguments.round, name, arguments.per_type)
    if (now := current_version(rounds, name).version) != parent:
        raise DataError(
            f"{template_path(rounds, name)}: is version {now}, but the round was asked with {parent}; make"
            " and generate the requests again, then review",
            code="other-parent",
        )
    version = record_candidate(rounds, name, parent, note="by hand")
    template = PromptTemplate(candidate_path(rounds, name), version.text)
    fill = make_fill(arguments.round, template)
    trial = write_trial_requests(arguments.round, name, version.version, arguments.per_type, fill)
    sampling = read_sampling(arguments)
    with open_ledger(ledger_path(arguments)) as ledger:
        budget = read_budget(arguments, sampling.model)
        structured = not arguments.plain
        generate_round(trial, ledger, read_server(arguments), sampling, budget, structured=structured)
    if arguments.judge:
        _read(arguments, folder, "parent")
        _read(arguments, trial, "candidate")
    decision = decide(arguments.round, name, parent, version.version)
    put_version(rounds, replace(find_version(rounds, name, parent), pass_rates=dict(decision.parent)))
    keep_candidate(rounds, version, decision)
    _say(rates_table({"before": decision.parent, "same requests": decision.same, "new ones": decision.new}))
    _say(_verdict(name, version.version, decision))


def _verdict(name: str, version: str, decision: Decision) -> str:
    if decision.objections:
        return f"{name} {version}: not kept: {'; '.join(decision.objections)}"
    return f"{name} {version}: kept, it is the template now"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
