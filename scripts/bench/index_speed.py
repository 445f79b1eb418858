"""Measure a training file of a million conversations: the indexing, and each rank that starts afterwards.

Makes such a file of random words (or takes one), indexes it in a process of its own, then starts several
ranks at once. Each opens the data set, draws an epoch's first order and decodes samples at random, itself and
in a data loader's worker. Memory is a process's own (USS): what the system would get back at its end. Python
and its libraries, which a rank has anyway, are taken off.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

from torch.utils.data import DataLoader, Dataset

from llava.data.dataset import LazySupervisedDataset
from llava.data.index import SAMPLES, open_index
from llava.data.sampler import EpochSampler, LengthGroupedSampler
from llava.files import atomic_write
from llava.log import progress

WORDS = 20_000
BODIES = 9_973  # different conversations; ids and images are each record's own
TEXT_ONLY = 0.06  # of the conversations of the original's mix
BATCH, WORLD = 16, 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=1_200_000, help="conversations to make")
    parser.add_argument("--ranks", type=int, default=2, help="processes that start at once")
    parser.add_argument("--samples", type=int, default=5_000, help="decoded in each, and in its worker")
    parser.add_argument("--folder", type=Path, required=True, help="where the file is made, and kept")
    flags = parser.parse_args()

    path = flags.folder / f"made_{flags.records}.json"
    if not path.is_file():
        write_records(path, flags.records)
    spawn = multiprocessing.get_context("spawn")
    print(f"{flags.records:,} conversations, {path.stat().st_size / 1e9:.2f} GB", flush=True)
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        built = pool.submit(index, path).result()
    print(
        f"index: {built['seconds']:.1f} s, of them processor time {built['cpu']:.1f} s; "
        f"{built['mb']:,.0f} MB on disk, {built['peak']:.0f} MB of memory in all while it is made",
        flush=True,
    )
    with ProcessPoolExecutor(flags.ranks, mp_context=spawn) as pool:
        started = [pool.submit(rank, path, number, flags.samples) for number in range(flags.ranks)]
    for number, measured in enumerate(each.result() for each in started):
        print(
            f"rank {number}: data set and first order in {measured['seconds']:.1f} s, of them processor time "
            f"{measured['cpu']:.1f} s; {measured['own']:.0f} MB of its own, {measured['later']:.0f} MB "
            f"after {flags.samples:,} samples ({measured['decode']:.0f} us each); "
            f"a worker has {measured['worker']:.0f} MB"
        )


def write_records(path: Path, records: int) -> None:
    """Write a JSON array like LLaVA's mix: several turns of random words, most with an image."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(WORDS)]
    bodies = [body(words, draw) for _ in range(BODIES)]
    with atomic_write(path) as stream:
        stream.write("[\n")
        for number in progress(range(records), name="writing records"):
            turns, has_image = bodies[number % BODIES]
            image = f'"image": "coco/train2017/{number // 2:012}.jpg", ' if has_image else ""
            end = ",\n" if number + 1 < records else "\n"
            stream.write(f'{{"id": "{number:012}", {image}"conversations": {turns}}}{end}')
        stream.write("]\n")


def body(words: list[str], draw: random.Random) -> tuple[str, bool]:
    """Return the turns of one conversation, about 1.3 kB of JSON, and whether it has an image."""
    has_image = draw.random() > TEXT_ONLY
    turns = []
    for _ in range(draw.randint(1, 5)):
        for speaker, size in (("human", draw.randint(5, 20)), ("gpt", draw.randint(5, 90))):
            turns.append({"from": speaker, "value": " ".join(draw.choices(words, k=size))})
    if has_image:
        turns[0]["value"] = "<image>\n" + turns[0]["value"]
    return json.dumps(turns), has_image


def index(path: Path) -> dict[str, float]:
    """Index the file and print what it took."""
    start, cpu = time.perf_counter(), time.process_time()
    made = open_index(path)
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "mb": (made.folder / SAMPLES).stat().st_size / 1e6,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def rank(path: Path, seed: int, samples: int) -> dict[str, float]:
    """Start as a rank of a run does and print what that took."""
    before, start, cpu = own_mb(), time.perf_counter(), time.process_time()
    dataset = LazySupervisedDataset(path, SimpleNamespace(model_max_length=2048), SimpleNamespace())
    inner = LengthGroupedSampler(BATCH, WORLD, dataset.modality_lengths, group_by_modality=True)
    order = list(EpochSampler(inner, seed=42))
    measured = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    measured["own"] = own_mb() - before

    places = random.Random(seed).sample(order, samples)
    cpu = time.process_time()
    for place in places:
        dataset.samples[place]
    measured["decode"] = (time.process_time() - cpu) / samples * 1e6
    measured["later"] = own_mb() - before
    loader = DataLoader(Decoded(dataset), batch_size=BATCH, sampler=places, num_workers=1, collate_fn=max)
    measured["worker"] = max(iter(loader))
    return measured


class Decoded(Dataset[float]):
    """Decodes samples in a worker and reports the worker's own memory."""

    def __init__(self, dataset: LazySupervisedDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, place: int) -> float:
        self.dataset.samples[place]
        return own_mb() if place % BATCH == 0 else 0.0


def own_mb() -> float:
    """Return the process's unshared memory in MB (USS)."""
    return sum(private_kib()) * 1024 / 1e6


def private_kib() -> Iterator[int]:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_"):
            yield int(line.split()[1])


if __name__ == "__main__":
    main()
