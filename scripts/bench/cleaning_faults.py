"""Plant faults of each kind in a made-up round, clean it, and print how many of each kind were caught.

Fails if of one kind less than 95 % are caught, or more than 2 % of the good records are lost. `--reader` also
plants faults that only a reader of the image sees (a wrong letter that the answer repeats), and asks a reader
who has the images' facts.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Container, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from llava.data_engine.cleaning.clean import CleaningSettings, clean_round, summarize_cleaning
from llava.files import read_jsonl
from llava.schema import JsonObject
from llava.scoring.intervals import wilson
from support.planted_faults import NEED_A_READER, PLANTED, read_facts, write_faulty_round

LEAST_CAUGHT, MOST_LOST = 0.95, 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=20_000, help="records to make (default 20000)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is made up (default 1)")
    parser.add_argument(
        "--faults", type=float, default=0.3, help="share of the records with a fault (default 0.3)"
    )
    parser.add_argument("--reader", action="store_true", help="ask a second reader, too")
    arguments = parser.parse_args()
    kinds = [kind for kind in PLANTED if arguments.reader or kind not in NEED_A_READER]
    with tempfile.TemporaryDirectory() as folder:
        rounds = Path(folder) / "rounds"
        made = write_faulty_round(
            rounds, arguments.records, seed=arguments.seed, share=arguments.faults, kinds=kinds
        )
        settings = CleaningSettings(questions=made.questions, answer=read_facts if arguments.reader else None)
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            report, seconds, cpu, peak = pool.submit(clean_and_measure, rounds / "2", settings).result()
        sys.stdout.write(summarize_cleaning(report) + "\n")
        is_good = print_shares(made.planted, PLANTED, rounds / "2" / "rejected.jsonl")
    sys.stdout.write(
        f"{arguments.records:,} records in {seconds:.0f} s, {arguments.records / seconds:,.0f} a second"
        f" ({cpu:.0f} s of processor time); peak memory {peak:.2f} GB\n"
    )
    sys.exit(not is_good)


def clean_and_measure(folder: Path, settings: CleaningSettings) -> tuple[JsonObject, float, float, float]:
    """Clean a round; return the report, seconds, seconds of processor time, and the peak memory in GB.

    In a process of its own, so that the generator's memory does not count.
    """
    start, cpu = time.perf_counter(), time.process_time()
    report = clean_round(folder, settings)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return report, seconds, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def print_shares(
    made: Mapping[str, str | None], allowed: Mapping[str, Container[str]], rejected: Path
) -> bool:
    """Print the table of kinds and return whether all shares are as wanted.

    A fault counts as caught by a rule that may catch it; a good record is lost by any rule.

    Args:
        made: By request, the kind of fault in its response; None for a good one.
        allowed: By kind, the rules that may catch it.
        rejected: The round's rejected.jsonl.
    """
    rules: dict[str, list[str]] = {}
    for _, row in read_jsonl(rejected):
        rules.setdefault(row["request"], []).append(row["rule"])
    planted = Counter(made.values())
    caught: Counter[str | None] = Counter()
    for request, kind in made.items():
        found = rules.get(request, [])
        caught[kind] += bool(found) and (kind is None or any(rule in allowed[kind] for rule in found))
        # What is rejected beside the fault was good.
        caught[None] += max(0, len(found) - 1)
    is_good = True
    for kind in [*(kind for kind in allowed if planted[kind]), None]:
        share, (low, high) = caught[kind] / planted[kind], wilson(caught[kind], planted[kind])
        is_good &= share <= MOST_LOST if kind is None else share >= LEAST_CAUGHT
        what = f"{kind}: caught" if kind else "good records: lost"
        sys.stdout.write(
            f"{what:<46} {caught[kind]:>7,} of {planted[kind]:>9,} {100 * share:6.2f} %"
            f" ({100 * low:.2f} to {100 * high:.2f})\n"
        )
    return is_good


if __name__ == "__main__":
    main()
