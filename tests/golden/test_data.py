"""Samples become the original's batches, and padding is told from text by length."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, Sampler
from transformers import CLIPImageProcessorPil

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.data.collate import NOTES, DataCollatorForSupervisedDataset
from llava.data.dataset import LazySupervisedDataset, count_learnable
from llava.data.mixture import DataFile, Mixture, mix
from llava.data.sampler import EpochSampler, LengthGroupedSampler
from llava.tokenizer import load_tokenizer
from support.errors import raises_code


def flag(argv: list[str], name: str, default: str = "") -> str:
    """The value of a flag; the last one wins."""
    places = [place for place, word in enumerate(argv) if word == name]
    return argv[places[-1] + 1] if places else default


def make_dataset(golden: Path, argv: list[str]) -> LazySupervisedDataset:
    tokenizer = load_tokenizer(golden / "weights/tiny-vicuna-v1.5", model_max_length=256)
    tokenizer.pad_token = tokenizer.unk_token
    data_args = SimpleNamespace(
        image_folder=golden / "images",
        image_aspect_ratio=flag(argv, "--image_aspect_ratio", "square"),
        is_multimodal=True,
        mm_use_im_start_end=False,
        image_processor=CLIPImageProcessorPil.from_pretrained(golden / "weights/tiny-clip-vit-patch14-56"),
    )
    template = conv_templates[flag(argv, "--version", "v1")]
    data_path = golden / flag(argv, "--data_path", "train_data/train.json")
    return LazySupervisedDataset(data_path, tokenizer, data_args, template=template)


@pytest.mark.parametrize("run", ["viii_lora", "viii_pretrain", "viii_full"])
def test_every_batch_of_a_run_is_the_originals(golden: Path, run: str) -> None:
    recorded = json.loads((golden / f"{run}.json").read_text())
    argv = recorded["argv"]
    dataset = make_dataset(golden, argv)
    collate = DataCollatorForSupervisedDataset(dataset.tokenizer)
    inner: Sampler[int] = RandomSampler(dataset)
    if flag(argv, "--group_by_modality_length"):
        accumulated = int(flag(argv, "--gradient_accumulation_steps"))
        inner = LengthGroupedSampler(4, accumulated, dataset.modality_lengths, group_by_modality=True)
    order = EpochSampler(inner, seed=42)

    indices: list[int] = []
    for epoch in range(2):
        order.set_epoch(epoch)
        indices += order
    for place, wanted in enumerate(recorded["batches"]):
        batch = collate([dataset[index] for index in indices[place * 4 : place * 4 + 4]])
        assert batch["input_ids"].tolist() == wanted["input_ids"]
        assert batch["labels"].tolist() == wanted["labels"]
        assert list(batch["images"].shape) == wanted["images_shape"]
        assert batch["images"].double().sum().item() == pytest.approx(wanted["images_sum"], abs=1e-2)


def test_lengths_are_words_and_an_image_counts_as_128(golden: Path) -> None:
    dataset = make_dataset(golden, [])
    rows = json.loads((golden / "train_data/train.json").read_text())
    words = [sum(len(turn["value"].split()) for turn in row["conversations"]) for row in rows]
    assert dataset.lengths.tolist() == [
        count + 128 * ("image" in row) for count, row in zip(words, rows, strict=True)
    ]
    assert dataset.modality_lengths.tolist() == [
        count if "image" in row else -count for count, row in zip(words, rows, strict=True)
    ]


def test_text_alone_has_a_black_image_in_a_multimodal_run_and_none_elsewhere(golden: Path) -> None:
    dataset = make_dataset(golden, [])
    place = next(place for place, sample in enumerate(dataset.samples) if sample.image is None)
    assert torch.equal(dataset[place]["image"], torch.zeros(3, 56, 56))
    dataset.data_args.is_multimodal = False
    assert "image" not in dataset[place]


def test_a_spawned_loader_process_makes_the_same_batch(golden: Path) -> None:
    dataset = make_dataset(golden, [])
    collate = DataCollatorForSupervisedDataset(dataset.tokenizer, with_notes=True)
    loader = DataLoader(
        dataset, batch_size=3, num_workers=1, multiprocessing_context="spawn", collate_fn=collate
    )
    made = next(iter(loader))
    wanted = collate([dataset[index] for index in range(3)])
    assert made[NOTES] == wanted[NOTES]
    for name in ("input_ids", "labels", "attention_mask", "images"):
        assert torch.equal(made[name], wanted[name])


def copied(golden: Path, folder: Path, start: int) -> LazySupervisedDataset:
    """A data set of the golden records from `start` on, in a file of its own."""
    rows = json.loads((golden / "train_data/train.json").read_text())[start:]
    folder.mkdir()
    (folder / "train.json").write_text(json.dumps(rows))
    return make_dataset(golden, ["--data_path", str(folder / "train.json")])


def test_each_file_of_a_mixture_is_taken_as_often_as_its_weight_says(golden: Path, tmp_path: Path) -> None:
    parts = [copied(golden, tmp_path / "a", 0), copied(golden, tmp_path / "b", 8)]  # 48 and 40 samples
    files = [DataFile("a", 2.25), DataFile("b", 0.5)]
    mixed, held = mix(parts, files, held_out=0.0, seed=1)
    assert isinstance(mixed, Mixture)
    assert held is None
    first, second = mixed.parts
    assert sorted(Counter(first.samples.rows.tolist()).values()) == [2] * 36 + [3] * 12
    assert len(set(second.samples.rows.tolist())) == len(second) == 20
    assert second.samples.rows.tolist() == sorted(second.samples.rows)

    assert len(mixed) == len(mixed.lengths) == len(mixed.modality_lengths) == 128
    for place, part, own in ((0, first, 0), (107, first, 107), (108, second, 0), (127, second, 19)):
        assert torch.equal(mixed[place]["input_ids"], part[own]["input_ids"])
        assert mixed.encode(place) == part.encode(own)
        assert mixed.samples[place] == part.samples[own]
        assert mixed.lengths[place] == part.lengths[own]

    drawn = [mix(parts, files, held_out=0.0, seed=seed)[0].lengths.tolist() for seed in (1, 2)]
    assert drawn[0] == mixed.lengths.tolist() != drawn[1]
    alone, _ = mix(parts[:1], [DataFile("a")], held_out=0.0, seed=1)
    assert alone is parts[0]
    with raises_code("empty-weight"):
        mix(parts, [DataFile("a"), DataFile("b", 0.01)], held_out=0.0, seed=1)


def test_what_is_held_out_of_a_mixture_is_in_no_file_of_it(golden: Path, tmp_path: Path) -> None:
    parts = [copied(golden, tmp_path / "a", 0), copied(golden, tmp_path / "b", 47)]  # 48 samples and 1
    training, held = mix(parts, [DataFile("a", 3), DataFile("b", 2)], held_out=0.2, seed=5)
    assert held is not None
    ways = [[data.samples[place] for place in range(len(data))] for data in (training, held)]
    names = [{sample.image or sample.id for sample in samples} for samples in ways]
    assert not names[0] & names[1]
    validated = [(sample.image, sample.id) for sample in ways[1]]
    copies = 1 + (parts[1].samples[0].id in {sample.id for sample in ways[1]})
    assert max(Counter(validated).values()) == copies  # once for each file it is in, whatever the weight
    assert len(ways[0]) + 3 * len(ways[1]) in (3 * 48 + 2, 3 * 48 + 3)


def item(ids: list[int], image: torch.Tensor | None = None) -> dict[str, Any]:
    row = {"id": "s", "problem": None, "input_ids": torch.tensor(ids), "labels": torch.tensor(ids)}
    return row if image is None else {**row, "image": image}


TOKENIZER = SimpleNamespace(pad_token_id=0, model_max_length=4)


def test_padding_is_told_from_text_by_length() -> None:
    batch = DataCollatorForSupervisedDataset(TOKENIZER)([item([1, 0, 5]), item([1])])
    assert batch["input_ids"].tolist() == [[1, 0, 5], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 0, 5], [1, IGNORE_INDEX, IGNORE_INDEX]]
    assert batch["attention_mask"].tolist() == [[True, True, True], [True, False, False]]
    assert set(batch) == {"input_ids", "labels", "attention_mask"}


def test_rows_are_cut_at_the_models_length() -> None:
    batch = DataCollatorForSupervisedDataset(TOKENIZER)([item([1, 2, 3, 4, 5, 6])])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4]]
    assert batch["labels"].tolist() == [[1, 2, 3, 4]]


def test_images_are_stacked_if_they_can_be() -> None:
    collate = DataCollatorForSupervisedDataset(TOKENIZER, with_notes=True)
    small, large = torch.zeros(3, 2, 2), torch.zeros(3, 4, 4)
    assert collate([item([1], small), item([1], small)])["images"].shape == (2, 3, 2, 2)
    assert [each.shape[-1] for each in collate([item([1], small), item([1], large)])["images"]] == [2, 4]
    assert collate([item([1], small)])[NOTES] == [("s", None, None)]
    with raises_code("mixed-images"):
        collate([item([1], small), item([1])])


def test_what_is_left_to_learn_is_counted_behind_the_image() -> None:
    ids = torch.tensor([[1, IMAGE_TOKEN_INDEX, 7, 8, 9], [5, 6, 7, 8, 9]])
    labels = torch.where(ids == IMAGE_TOKEN_INDEX, IGNORE_INDEX, ids)
    labels[0, 0] = IGNORE_INDEX
    assert count_learnable(ids, labels, image_positions=1, max_length=None).tolist() == [3, 4]
    assert count_learnable(ids, labels, image_positions=4, max_length=6).tolist() == [1, 4]
    assert count_learnable(ids, labels, image_positions=9, max_length=4).tolist() == [0, 3]
