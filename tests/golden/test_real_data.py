"""Real input: real records have the original's ids and labels, real photos go through the model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava.constants import IGNORE_INDEX
from llava.data.collate import DataCollatorForSupervisedDataset
from llava.data.dataset import LazySupervisedDataset
from llava.image_reading import read_image
from llava.infer.engine.engine import Engine
from llava.infer.engine.requests import Generation, ImageFile, Request
from llava.infer.jobs.prompting import prompt_of
from llava.tokenizer import load_tokenizer
from support.shared_data import require_shared
from support.tiny_model import tiny_model

TOWER = "weights/tiny-clip-vit-patch14-56"


def blank_images(folder: Path, records: Path) -> None:
    """A small image under every name that the records use: the photos themselves are not at hand."""
    folder.mkdir()
    Image.new("RGB", (12, 9), "grey").save(folder / "any.jpg")
    for line in records.read_text(encoding="utf-8").splitlines():
        path = folder / json.loads(line)["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.symlink_to(folder / "any.jpg")


@pytest.mark.parametrize("legacy", [False, True])
def test_real_records_become_the_originals_ids_and_labels(
    golden: Path, realdata: Path, tmp_path: Path, legacy: bool
) -> None:
    records = realdata / "mix665k/llava_v1_5_mix1k.jsonl"
    blank_images(tmp_path / "images", records)
    tokenizer = load_tokenizer(
        require_shared(golden / "tokenizer_llama"), legacy=legacy, model_max_length=2048
    )
    tokenizer.pad_token = tokenizer.unk_token
    data_args = SimpleNamespace(
        image_folder=tmp_path / "images",
        image_aspect_ratio="pad",
        is_multimodal=True,
        mm_use_im_start_end=False,
        image_processor=CLIPImageProcessorPil.from_pretrained(golden / TOWER),
    )
    dataset = LazySupervisedDataset(records, tokenizer, data_args)
    wanted: list[dict[str, Any]] = json.loads((golden / "xii_mix665k_real.json").read_text())[
        f"legacy_{str(legacy).lower()}"
    ]
    assert (len(dataset), len(wanted)) == (1000, 500)
    for row in wanted:
        item = dataset[row["row"]]
        labels = [IGNORE_INDEX] * len(row["input_ids"])
        for start, stop in row["supervised"]:
            labels[start:stop] = row["input_ids"][start:stop]
        assert (item["id"], item["problem"]) == (row["id"], None)
        assert item["input_ids"].tolist() == row["input_ids"]
        assert item["labels"].tolist() == labels
        assert item["image"].shape == (3, 56, 56)


def test_every_real_record_can_be_learned_from_in_a_batch(
    golden: Path, realdata: Path, tmp_path: Path
) -> None:
    records = realdata / "mix665k/llava_v1_5_mix1k.jsonl"
    blank_images(tmp_path / "images", records)
    loaded = tiny_model(golden)
    data_args = SimpleNamespace(
        image_folder=tmp_path / "images",
        image_aspect_ratio="pad",
        is_multimodal=True,
        mm_use_im_start_end=False,
        image_processor=loaded.image_processor,
    )
    loaded.tokenizer.pad_token = loaded.tokenizer.unk_token
    dataset = LazySupervisedDataset(records, loaded.tokenizer, data_args)
    collate = DataCollatorForSupervisedDataset(loaded.tokenizer)
    for start in (0, 500):
        batch = collate([dataset[index] for index in range(start, start + 4)])
        with torch.no_grad():
            loss = loaded.model(**batch).loss
        assert torch.isfinite(loss)
        assert loss > 0


def test_real_photos_go_through_preprocessing_and_model(golden: Path, realdata: Path) -> None:
    photos = sorted([*realdata.rglob("*.jpg"), *realdata.rglob("*.png")])
    assert len(photos) > 100
    assert {read_image(photo).mode for photo in photos} == {"RGB"}
    engine = Engine(tiny_model(golden), Generation(max_new_tokens=4), batch_size=8)
    requests = [
        Request(prompt_of("vicuna_v1", "What is this?", "<image>\n"), (ImageFile(photo),), name=photo.name)
        for photo in photos[:40]
    ]
    together = {index: reply.text for index, reply in engine.answer(requests)}
    alone = Engine(tiny_model(golden), Generation(max_new_tokens=4), batch_size=1)
    assert together == {index: reply.text for index, reply in alone.answer(requests)}
    # Different photos are different to the model, or it has not seen them.
    assert len(set(together.values())) > 5
