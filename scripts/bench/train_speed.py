"""Measure training speed: the original's recipe against ours, and the gain of each shortcut.

Both sides run in one call, on the same random weights and batches: samples as long as those of LLaVA-1.5's
instruction mix, batched by the original's sampler for 8 devices, 16 a device. Their losses must agree. The
first line is the original's recipe: padded batches, logits everywhere, all layers recomputed, all layers of
the vision tower. Each line below adds one shortcut to the line above; with `--each` each is also added alone.
Adapters are in float32, with dropout; on a GPU autocast computes in bfloat16, as in a user's run. B of an
adapter is 0 at the start and stays so, so that losses agree whatever dropout draws.

    OMP_NUM_THREADS=1 python scripts/bench/train_speed.py
    python scripts/bench/train_speed.py --device cuda --shape 7b --batches 8
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from eval_speed import SIZES, build, print_row

from llava.command import run
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import default_conversation
from llava.data.collate import DataCollatorForSupervisedDataset
from llava.data.dataset import count_learnable
from llava.data.pack import count_positions
from llava.data.sampler import get_modality_length_grouped_indices
from llava.model.lora import add_adapter, leave_casts_to_autocast
from llava.model.packed_attention import enable_packing
from llava.prompts.labels import supervise
from llava.samples import group_lengths, read_samples
from llava.tokenizer import load_tokenizer
from llava.train.planning.flops import measured_rate, training_flops
from llava.train.planning.footprint import measure as measure_footprint
from llava.train.planning.memory import Batch, Pass, Sharing, layers_to_recompute, plan_memory, room_on
from llava.train.planning.recompute import recompute_first
from llava.train.step.recipe import Recipe
from llava.train.step.rows import rows_of

COLUMNS = (
    *("recipe", "loss", "s a batch", "samples/s", "tokens/s", "supervised tokens/s", "ratio"),
    *("ratio of processor time", "peak GB", "planned GB", "utilisation"),
)
DEVICES, LONGEST = 8, 2048
# The whole job: 665k samples of the mix and 220k of the data engine.
JOB = 885_000
# Ids, and those that are supervised, of the mix's samples with an image: of each twentieth by length.
LENGTHS = (
    *((75, 5), (88, 4), (93, 5), (100, 7), (112, 12), (132, 19), (147, 29), (157, 30), (166, 59), (179, 84)),
    *((195, 106), (212, 121), (245, 128), (305, 111), (378, 103), (447, 161), (511, 171), (542, 179)),
    *((563, 208), (720, 340)),
)


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to compute a step."""

    name: str
    recipe: Recipe
    casts: bool = True  # PEFT casts the adapters' inputs to float32, where autocast casts them back


def variants(budget: int, each: bool, *, recomputed: int, is_half: bool) -> list[Variant]:
    """List the original's recipe, then one with one more shortcut each; ours recomputes so many layers."""
    original = Recipe(checkpoint_layers="all")
    added: list[tuple[str, dict[str, Any]]] = [
        ("no unread tower layers", {"skip_unread_layers": True}),
        ("packed in one row", {"pack": True}),
        ("logits where supervised", {"sparse_loss": True}),
        (f"rows of {budget}", {"micro_batch_tokens": budget}),
        (
            f"{recomputed or 'nothing'} recomputed: ours",
            {"checkpoint_layers": recomputed, "skip_blank_images": True},
        ),
    ]
    found = [Variant("original", original)]
    for name, change in added:
        found.append(Variant(f"+ {name}", replace(found[-1].recipe, **change)))
    if is_half:
        found[-1] = replace(found[-1], name=found[-1].name.removesuffix(": ours"))
        found.append(Variant("+ casts left to autocast: ours", found[-1].recipe, casts=False))
    alone = [(name, change) for name, change in added if "micro_batch_tokens" not in change]
    return found + [Variant(f"{name}, alone", replace(original, **change)) for name, change in alone * each]


def mix() -> tuple[list[dict[str, Any]], list[int], str]:
    """Return samples without images, the lengths that the sampler groups by, and their source."""
    root = Path(os.environ.get("LLAVA_TEST_DATA", ""))
    generator = torch.Generator().manual_seed(0)
    if not (root / "realdata/mix665k").is_dir():
        made = []
        for length, learned in LENGTHS * 32:
            ids = torch.randint(3, 32000, (length,), generator=generator)
            ids[35] = IMAGE_TOKEN_INDEX
            made.append(
                {
                    "input_ids": ids,
                    "labels": ids.where(torch.arange(length) >= length - learned, IGNORE_INDEX),
                }
            )
        return made, [length for length, _ in LENGTHS * 32], "made up"
    samples = list(read_samples(root / "realdata/mix665k/llava_v1_5_mix1k.jsonl"))
    tokenizer = load_tokenizer(root / "golden/tokenizer_llama", legacy=True)
    pairs = [supervise(sample, default_conversation, tokenizer, max_length=None) for sample in samples]
    real = [{"input_ids": torch.tensor(p.input_ids), "labels": torch.tensor(p.labels)} for p in pairs]
    return real, [group_lengths(sample)[1] for sample in samples], "real"


class _Padding:
    pad_token_id, model_max_length = 0, LONGEST


def batches_of(count: int, size: int, device: str, dtype: torch.dtype) -> tuple[list[dict[str, Any]], str]:
    """Choose `count` of the batches of `size` that 8 devices see: those closest to the average."""
    samples, lengths, source = mix()
    torch.manual_seed(0)
    order = get_modality_length_grouped_indices(lengths, size, DEVICES)
    whole = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
    sizes = [(len(each["input_ids"]), int((each["labels"] != IGNORE_INDEX).sum())) for each in samples]

    def mean(places: Sequence[int]) -> tuple[float, float]:
        ids, learned = zip(*(sizes[place] for place in places), strict=True)
        return sum(ids) / len(places), sum(learned) / len(places)

    wanted = mean(range(len(sizes)))
    off = {
        first: sum(abs(a / b - 1) for a, b in zip(mean(whole[first]), wanted, strict=True))
        for first in range(len(whole))
    }
    chosen = [whole[first] for first in sorted(off, key=off.__getitem__)[:count]]
    generator = torch.Generator().manual_seed(1)
    collate = DataCollatorForSupervisedDataset(_Padding())
    made = []
    for places in chosen:
        images = torch.randn(size, 3, 336, 336, generator=generator)
        batch = collate(
            [{**samples[place], "image": image} for place, image in zip(places, images, strict=True)]
        )
        made.append(
            {
                name: each.to(device, dtype if each.is_floating_point() else None)
                for name, each in batch.items()
            }
        )
    return made, source


def step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Any],
    recipe: Recipe,
    autocast: torch.dtype | None,
) -> float:
    """Take one optimizer step on one batch and return its loss."""
    known = {"image_positions": model.image_positions, "max_length": LONGEST}
    count = count_learnable(batch["input_ids"], batch["labels"], **known).sum()
    layers = len(model.get_decoder().layers)
    recompute_first(model, layers if recipe.checkpoint_layers == "all" else int(recipe.checkpoint_layers))
    losses = []
    for row in rows_of(batch, recipe, supervised=count, **known):
        with torch.autocast(count.device.type, autocast, enabled=autocast is not None):
            loss = model(**row).loss
        loss.backward()
        losses.append(loss.detach())
    optimizer.step()
    optimizer.zero_grad()
    return float(torch.stack(losses).sum())


class Gauge:
    """Seconds, processor time of all threads and peak memory of some work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds = self.busy = self.peak = 0.0

    def of(self, work: Callable[[], list[float]]) -> list[float]:
        """Run `work`, measure it and return its result."""
        is_gpu = self._device.type == "cuda"
        if is_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            Path("/proc/self/clear_refs").write_text("5")
        began, began_busy = time.perf_counter(), time.process_time()
        said = work()
        if is_gpu:
            torch.cuda.synchronize(self._device)
        self.seconds, self.busy = time.perf_counter() - began, time.process_time() - began_busy
        if is_gpu:
            self.peak = torch.cuda.max_memory_allocated(self._device) / 1e9
        else:
            status = Path("/proc/self/status").read_text()
            found = re.search(r"VmHWM:\s+(\d+) kB", status)
            self.peak = int(found[1]) * 1024 / 1e9 if found else float("nan")
        return said


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the operations per second of matrix products; on a CPU, per second of processor time."""
    if device.type == "cuda":
        return measured_rate(device, dtype)
    one, other = (torch.randn(1024, 1024, dtype=dtype) for _ in range(2))
    spent = []
    for _ in range(6):
        began = time.process_time()
        torch.mm(one, other)
        spent.append(time.process_time() - began)
    return 2 * 1024**3 / min(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="default: bfloat16 on cuda, else float32"
    )
    parser.add_argument("--shape", choices=list(SIZES), default="small")
    parser.add_argument("--rank", type=int, default=128, help="of the adapter")
    parser.add_argument("--per-device", type=int, default=16, help="samples of a batch")
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--rows", type=int, default=8192, help="positions of a packed row")
    parser.add_argument("--each", action="store_true", help="also each shortcut alone")
    parser.add_argument("--only", nargs="+", type=int, help="lines to measure, from 0; the first is always")
    flags = parser.parse_args()
    flags.dtype = flags.dtype or ("bfloat16" if flags.device.startswith("cuda") else "float32")
    dtype = getattr(torch, flags.dtype)
    with tempfile.TemporaryDirectory() as folder:
        base = build(SIZES[flags.shape], flags.device, dtype, Path(folder)).model
    base.config.tokenizer_model_max_length = LONGEST
    base.config.use_cache = False
    base.enable_input_require_grads()
    torch.manual_seed(0)
    model = add_adapter(base, r=flags.rank, alpha=2 * flags.rank, dropout=0.05)
    base.get_model().mm_projector.requires_grad_(True).float()
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    # At a rate of 0 the weights stay as they are for the next line, and the step costs what it costs.
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.0)
    batches, source = batches_of(flags.batches, flags.per_device, flags.device, dtype)
    compare(model, optimizer, batches, flags, f"{source} lengths")


def compare(
    model: Any, optimizer: Any, batches: list[dict[str, Any]], flags: argparse.Namespace, source: str
) -> None:
    """Measure and print the requested lines; exit with an error if losses differ."""
    device, dtype = torch.device(flags.device), getattr(torch, flags.dtype)
    autocast = None if dtype == torch.float32 else dtype
    known = {"image_positions": model.image_positions, "max_length": LONGEST}
    lengths = [count_positions(b["input_ids"], b["attention_mask"], **known).tolist() for b in batches]
    learned = sum(int(count_learnable(b["input_ids"], b["labels"], **known).sum()) for b in batches)
    samples, tokens = flags.per_device * len(batches), sum(map(sum, lengths))
    padded = sum(flags.per_device * max(each) for each in lengths)
    needed = training_flops(model).of([n for each in lengths for n in each], logits=learned, images=samples)
    rate = product_rate(device, dtype)
    print(
        f"{flags.shape} model, {flags.device}, {flags.dtype}, {torch.get_num_threads()} threads; {source}: "
        f"{samples} samples of {tokens / samples:.0f} tokens, {learned / tokens:.1%} supervised, padding to "
        f"{padded / tokens:.2f} times as many; matrix products at {rate / 1e9:.0f} GFLOP/s\n"
    )
    print_row(*COLUMNS)
    print_row(*["---"] * len(COLUMNS))
    footprint = measure_footprint(model, device=device, autocast=autocast)
    largest = Batch(flags.per_device, 1, max(map(max, lengths)), flags.rows, learned / tokens)
    recomputed = layers_to_recompute(footprint, largest.passed(0), Sharing(), room_on(device, model))
    first: Gauge | None = None
    expected: list[float] = []
    agree = True
    ways = variants(flags.rows, flags.each, recomputed=recomputed, is_half=autocast is not None)
    for place, variant in enumerate(ways):
        if place and flags.only and place not in flags.only:
            continue
        gauge, losses = measured(model, optimizer, batches, variant, autocast)
        first, expected = first or gauge, expected or losses
        close = 1e-4 if flags.dtype == "float32" else 2e-2
        agree &= all(abs(a - b) <= close * abs(b) for a, b in zip(losses, expected, strict=True))
        cells = [f"{losses[0]:.5f}", f"{gauge.seconds / len(batches):.1f}", f"{samples / gauge.seconds:.3f}"]
        cells += [f"{tokens / gauge.seconds:.0f}", f"{learned / gauge.seconds:.0f}"]
        cells.append(f"{first.seconds / gauge.seconds:.2f}")
        cells.append(f"{first.busy / gauge.busy:.2f}" if device.type == "cpu" else "-")
        spent = gauge.busy if device.type == "cpu" else gauge.seconds
        planned = plan_memory(footprint, passed(variant.recipe, largest, footprint.layers), Sharing()).peak
        cells += [f"{gauge.peak:.1f}", f"{planned / 1e9:.1f}", f"{needed / spent / rate:.0%}"]
        print_row(variant.name, *cells)
        if device.type == "cuda":
            print(
                f"    {JOB} samples on 8 such cards: {JOB / (8 * samples / gauge.seconds) / 3600:.1f} hours"
            )
    if not agree:
        sys.exit("the losses differ")


def passed(recipe: Recipe, batch: Batch, layers: int) -> Pass:
    """Return the largest pass of a recipe, as `llava plan` sees it."""
    recomputed = recipe.checkpoint_layers
    seen = replace(
        batch,
        row=recipe.micro_batch_tokens if recipe.pack else None,
        logits=batch.logits if recipe.sparse_loss else 1.0,
    )
    return seen.passed(recomputed if isinstance(recomputed, int) else layers)


def measured(
    model: Any,
    optimizer: Any,
    batches: list[dict[str, Any]],
    variant: Variant,
    autocast: torch.dtype | None,
) -> tuple[Gauge, list[float]]:
    """Measure one line and return its losses. On a GPU the first batch is a warm-up, not counted."""
    device = batches[0]["input_ids"].device
    model.config._attn_implementation = "sdpa"
    leave_casts_to_autocast(model, leaves=not variant.casts)
    if variant.recipe.pack:
        enable_packing(model.config)

    def work() -> list[float]:
        return [step(model, optimizer, batch, variant.recipe, autocast) for batch in batches]

    gauge = Gauge(device)
    model.get_vision_tower().runs_unread_layers = not variant.recipe.skip_unread_layers
    if device.type == "cuda":
        step(model, optimizer, batches[0], variant.recipe, autocast)
    return gauge, gauge.of(work)


if __name__ == "__main__":
    run(main)
