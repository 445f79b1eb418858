"""Divide a round's requests among the types by Adaptive Bad-case Sampling, and foresee what they could show.

The probability of a type is proportional to (1 - accuracy)^alpha. Source: MLLM-DataEngine; alpha is 0.5 in
its second version and 1 in its first. The papers draw a type for each request. Here each type gets its share
of the requests, rounded by largest remainder: the same on average, without the noise of the draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, variance

from llava.data_engine.loop.gains import Pairs, gain_interval, match_verdicts, pairs_by_type
from llava.data_engine.loop.pool import POOL_FILE, read_pool
from llava.data_engine.loop.pool import STEP as POOL_STEP
from llava.data_engine.loop.power import flip_rate_of, foresee
from llava.data_engine.loop.round import (
    ROUND_FILE,
    SCHEMA,
    RoundSettings,
    file_sha256,
    find_rounds,
    read_settings,
    read_step,
    require_types,
    require_unchanged,
    round_number,
)
from llava.data_engine.loop.split import SPLIT_FILE, Split, read_parts
from llava.errors import DataError, SettingsError, shown
from llava.files import write_json
from llava.schema import JsonObject, Verdict
from llava.scoring.metrics import format_table, read_scores

PLAN_FILE = "plan.json"
_NO_CASE = "no bad case"
STEP = "llava engine plan"


def shrink_accuracies(
    accuracies: Sequence[float], sizes: Sequence[int], shrinkage: str | float
) -> list[float]:
    """Return the accuracies drawn towards their mean, those of few questions most.

    They are the means under a Beta prior around the mean accuracy. A number is the prior's strength in
    questions. With "moments" it fits how much the accuracies vary beyond chance; if they do not, all become
    the mean. Source: J. C. Kleinman, JASA 68 (1973) 46, moments with equal weights.

    Args:
        accuracies: Of each type, as shares.
        sizes: The number of questions of each type.
        shrinkage: "none", "moments", or the strength.
    """
    if shrinkage == "none" or len(accuracies) < 2:
        return list(accuracies)
    mean = fmean(accuracies)
    if isinstance(shrinkage, str):
        pairs = zip(accuracies, sizes, strict=True)
        beyond_chance = variance(accuracies) - fmean([a * (1 - a) / n for a, n in pairs])
        if beyond_chance <= 0:
            return [mean] * len(accuracies)
        shrinkage = max(0.0, mean * (1 - mean) / beyond_chance - 1)
    return [(n * a + shrinkage * mean) / (n + shrinkage) for a, n in zip(accuracies, sizes, strict=True)]


def correct_guessing(accuracy: float, chance: float | None) -> float:
    """Return (accuracy - chance) / (1 - chance), at least 0: the share known, if all else is guessed."""
    return accuracy if chance is None or chance >= 1 else max(0.0, (accuracy - chance) / (1 - chance))


def type_probabilities(accuracies: Sequence[float], alpha: float, min_share: float = 0.0) -> list[float]:
    """Return the share of each type: its (1 - accuracy)^alpha over the sum of all, and at least `min_share`.

    Raises:
        SettingsError: The smallest shares add up to more than 1.
    """
    rest = 1 - min_share * len(accuracies)
    if rest < 0:
        raise SettingsError(
            f"min_share is {min_share}; {len(accuracies)} types allow at most {1 / len(accuracies):.3f}",
            code="out-of-range",
        )
    weights = [(1 - accuracy) ** alpha for accuracy in accuracies]
    total = sum(weights)
    return [min_share + rest * (weight / total if total else 1 / len(weights)) for weight in weights]


def allocate(probabilities: Sequence[float], total: int) -> list[int]:
    """Return whole numbers close to total x probability that add up to `total` (largest remainder)."""
    exact = [total * probability for probability in probabilities]
    counts = [int(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda index: counts[index] - exact[index])
    for index in order[: total - sum(counts)]:
        counts[index] += 1
    return counts


def make_plan(folder: Path, *, compare: Path | None = None) -> JsonObject:
    """Write a round's `plan.json` from its pool, and return it.

    Args:
        folder: The round's folder.
        compare: The metrics.json of another run over the same questions: how many answers change between it
            and the pool's run. Without it, the round before tells, or else the setting `flip_rate`.

    Raises:
        DataError: The pool is missing, of another round, or its metrics have changed; or it has no bad case.
        SettingsError: A setting is wrong.
    """
    settings, pool, split = read_settings(folder), read_pool(folder), read_parts(folder.parent)
    require_unchanged(folder.parent / SPLIT_FILE, pool["split"], step=POOL_STEP)
    verdicts = _pool_verdicts(pool, split)
    before = find_previous(folder, settings)
    earlier = None if before is None else _pool_verdicts(read_pool(before), split)
    given_up = _give_up(pool, settings, before, pairs_by_type(earlier, verdicts) if earlier else {})
    notes = []
    if given_up.keys() == pool["types"].keys():
        notes.append(
            f"No type is left: {'; '.join(f'{name}: {why}' for name, why in given_up.items())}. So all with a"
            " bad case are asked about again. Another round like the last will hardly gain: stop, or change"
            " the images, the prompt or the training first."
        )
        given_up = {name: why for name, why in given_up.items() if why == _NO_CASE}
    flip_rate, flips = settings.flip_rate, "assumed"
    if compare is not None:
        earlier = split.select(read_scores(compare), "guide")
    if earlier is not None:
        flips = f"seen between {compare or before} and this model"
        # No flip in a small part does not mean that there are none.
        pairs = [(old.score, new.score) for old, new in match_verdicts(earlier, verdicts)]
        flip_rate = max(flip_rate_of(pairs), 1 / len(pairs))
    plan: JsonObject = {
        "schema": SCHEMA,
        **asdict(settings),
        "pool": file_sha256(folder / POOL_FILE),
        "types": _divide(pool["types"], settings, given_up),
        "power": foresee(
            {name: (row["holdout"], row["accuracy"]) for name, row in pool["types"].items()},
            flip_rate=flip_rate,
            flips=flips,
            rounds=settings.rounds,
            expected_gain=settings.expected_gain,
            cost=settings.requests * settings.price or None,
        ),
        "notes": notes,
    }
    write_json(folder / PLAN_FILE, plan)
    return plan


def read_plan(folder: Path) -> JsonObject:
    """Return a round's plan, checked against its settings and pool.

    Raises:
        DataError: It is missing or damaged, or settings or pool have changed since.
    """
    plan = load_plan(folder)
    require_unchanged(folder / POOL_FILE, plan["pool"], step=STEP)
    for name, value in asdict(read_settings(folder)).items():
        if plan.get(name) != value:
            raise DataError(
                f"{folder / ROUND_FILE}: {name} is {value!r}, the plan was made with {plan.get(name)!r};"
                f" run `{STEP}` again",
                code="changed-input",
            )
    return plan


def load_plan(folder: Path) -> JsonObject:
    """Return a round's plan as it was made, whatever has changed since.

    Raises:
        DataError: It is missing or damaged.
    """
    keys = {"round": int, "pool": str, "types": dict, "power": dict, "requests": int}
    plan = read_step(folder / PLAN_FILE, step=STEP, keys=keys)
    wanted = {"probability", "requests", "given_up"}
    require_types(
        folder / PLAN_FILE,
        plan["types"],
        lambda row: isinstance(row, dict) and wanted <= row.keys(),
        wanted=", ".join(sorted(wanted)),
        step=STEP,
    )
    return plan


def plan_counts(folder: Path, plan: JsonObject, pool: JsonObject) -> dict[str, int]:
    """Return the requests of each type, as a step may use them. A person may have edited the plan.

    Raises:
        DataError: A number is wrong, or a type has requests but no bad case to show.
    """
    own, path = read_settings(folder), folder / PLAN_FILE
    counts = {}
    for name, row in plan["types"].items():
        count = row["requests"]
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise DataError(
                f"{path}: type {name!r}: requests is {shown(count)}; wanted 0 or more", code="wrong-schema"
            )
        cases = pool["types"].get(name, {}).get("cases", [])
        if count and own.cases_per_request and not cases:
            raise DataError(
                f"{path}: type {name!r} has {count} requests, but {folder / POOL_FILE} no bad case of it to"
                f" show; set them to 0, or cases_per_request in {folder / ROUND_FILE}",
                code="no-cases",
            )
        for place, case in enumerate(cases):
            if not isinstance(case, dict) or not isinstance(case.get("question"), str):
                raise DataError(
                    f"{folder / POOL_FILE}: type {name!r}: cases[{place}] is {shown(case)}; wanted a case;"
                    f" run `{POOL_STEP}` again",
                    code="wrong-schema",
                )
        counts[name] = count
    return counts


def _divide(
    types: Mapping[str, JsonObject], settings: RoundSettings, given_up: Mapping[str, str]
) -> dict[str, JsonObject]:
    """Return each type's row of the plan."""
    rows = list(types.values())
    shrunk = shrink_accuracies(
        [row["accuracy"] for row in rows], [row["n"] for row in rows], settings.shrinkage
    )
    known = [
        correct_guessing(accuracy, row["chance"]) if settings.guess else accuracy
        for accuracy, row in zip(shrunk, rows, strict=True)
    ]
    alpha = 0.0 if settings.arm == "uniform" else settings.alpha
    active = [index for index, name in enumerate(types) if name not in given_up]
    if not active:
        raise DataError("no type of the pool has a bad case to ask about", code="nothing-to-plan")
    shares = type_probabilities([known[index] for index in active], alpha, settings.min_share)
    counts = allocate(shares, settings.requests)
    found = {index: (share, count) for index, share, count in zip(active, shares, counts, strict=True)}
    return {
        name: {
            "accuracy": row["accuracy"],
            "n": row["n"],
            "shrunk": shrunk[index],
            "weight": (1 - known[index]) ** alpha,
            "probability": found.get(index, (0.0, 0))[0],
            "requests": found.get(index, (0.0, 0))[1],
            "given_up": given_up.get(name),
        }
        for index, (name, row) in enumerate(types.items())
    }


def find_previous(folder: Path, settings: RoundSettings) -> Path | None:
    """Return the round before this one: of its own arm, else the guided one; None if neither is there."""
    earlier = [path for path in find_rounds(folder.parent) if round_number(path) == settings.round - 1]
    arms = {read_settings(path).arm: path for path in earlier}
    return arms.get(settings.arm, arms.get("guided"))


def _give_up(
    pool: JsonObject, settings: RoundSettings, before: Path | None, pairs: Mapping[str, Pairs]
) -> dict[str, str]:
    """Return the types that get no request, with the reasons.

    A type is given up if the interval of its gain in the last round has 0, and ends below what the type would
    have gained if it had closed the same share of what was missing as all types that were asked about. A type
    that may have been unlucky is kept.
    """
    reasons = {name: _NO_CASE for name, row in pool["types"].items() if not row["kept"]}
    if before is None or not settings.give_up or settings.arm == "uniform":
        return reasons
    rows = load_plan(before)["types"]
    closed = _closed_share([pair for name, row in rows.items() if row["requests"] for pair in pairs[name]])
    for name, row in rows.items():
        if name in reasons or name not in pool["types"]:
            continue
        if row["given_up"] and row["given_up"] != _NO_CASE:
            reasons[name] = row["given_up"]
        elif row["requests"]:
            low, high = gain_interval(pairs[name])
            average = closed * _missing(pairs[name])
            if low <= 0 and high < average:
                reasons[name] = (
                    f"gain of round {settings.round - 1} within noise [{100 * low:.1f}, {100 * high:.1f}] on"
                    f" {len(pairs[name])} questions; at the types' average it would be {100 * average:.1f}"
                )
    return reasons


def _closed_share(pairs: Pairs) -> float:
    """Return the gain as a share of what was missing before it, 0 if nothing was."""
    missing = _missing(pairs) if pairs else 0.0
    return fmean(after - before for before, after in pairs) / missing if missing else 0.0


def _missing(pairs: Pairs) -> float:
    return 1 - fmean(before for before, _ in pairs)


def _pool_verdicts(pool: JsonObject, split: Split) -> tuple[Verdict, ...]:
    """Return the guide verdicts that a pool was made of."""
    path = Path(pool["metrics"]["path"])
    require_unchanged(path, pool["metrics"]["sha256"], step=POOL_STEP)
    return split.select(read_scores(path), "guide")


def plan_table(plan: JsonObject) -> str:
    """Return the plan as a table and lines to read."""
    rows = [
        [
            name,
            f"{100 * row['accuracy']:.2f}",
            f"{100 * row['shrunk']:.2f}",
            str(row["n"]),
            f"{100 * row['probability']:.1f} %",
            f"{row['requests']:,}",
            row["given_up"] or "",
        ]
        for name, row in plan["types"].items()
    ]
    table = format_table(["type", "accuracy", "shrunk", "n", "share", "requests", ""], rows)
    asked = sum(1 for row in plan["types"].values() if row["requests"])
    summary = (
        f"plan: {plan['requests']:,} requests over {asked} of {len(plan['types'])} types"
        f" ({plan['arm']}, alpha {plan['alpha']:g}, shrinkage {plan['shrinkage']})"
    )
    return "\n".join([table, *plan["power"]["sentences"], *plan["notes"], summary])
