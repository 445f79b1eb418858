"""Merging, extracting, consolidating and writing keep every weight, or write nothing at all."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open

from llava.errors import CheckpointError, DataError
from llava.exchange.hf_folder import export_hf
from llava.image_reading import read_image
from llava.images import process_images
from llava.model import merge
from llava.model.builder import load_pretrained_model
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.loading.checkpoint import (
    extract_projector,
    write_non_lora,
    write_projector,
    write_projector_file,
)
from llava.model.loading.run_record import RUN_FILE
from llava.model.loading.weights import read_tensors
from llava.model.lora import add_adapter, split_trained_state, write_adapter
from llava.schema import Score, Scores
from llava.scoring.metrics import write_scores
from support import tiny_checkpoints as tiny
from support.errors import raises_code
from support.full_disk import files_of_at_most
from support.warm_python import warm_python


def run_script(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([warm_python(), *map(str, words)], capture_output=True, text=True, check=False)


def has_golden_logits(golden: Path, folder: Path, wanted: str, bound: float, **settings: Any) -> bool:
    """Whether a loaded folder's logits for a golden prompt are those in x_merge.npz."""
    _, model, processor, _ = load_pretrained_model(folder, device="cpu", **{"dtype": "float32", **settings})
    ids = tiny.fields(golden / "v_vi_vii_model.json")["generate"][0]["input_ids"]
    pixels = process_images([read_image(golden / "images/a_640x480.png")], processor, model.config)
    with torch.no_grad():
        found = model(torch.tensor([ids]), images=pixels.to(model.dtype)).logits[0].float().numpy()
    return bool(np.abs(found - np.load(golden / "x_merge.npz")[wanted]).max() < bound)


def test_the_merged_model_is_the_originals(golden: Path, repo: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    flags = ["--model-path", golden / tiny.ADAPTER, "--model-base", golden / tiny.LANGUAGE]
    result = run_script(repo / "scripts/merge_lora_weights.py", *flags, "--save-model-path", out)
    assert result.returncode == 0, result.stderr
    facts = json.loads((golden / "x_merge.json").read_text(encoding="utf-8"))
    assert {path.name for path in out.iterdir()} == {*facts["merged_files"], "README.md"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o644}
    with safe_open(out / "model.safetensors", framework="pt") as stream:
        names = list(stream.keys())
        assert set(names) == set(facts["merged_keys"])
        for name, (shape, norm) in facts["merged_norms"].items():
            tensor = stream.get_tensor(name)
            assert list(tensor.shape) == shape
            assert abs(tensor.double().norm().item() - norm) < 1e-6, name
    assert has_golden_logits(golden, out, "D_fp16_img_logits", 2e-2, dtype="float16")
    # In float32 the same half-precision weights: the original's case B, but for its tables of rotary angles.
    assert has_golden_logits(golden, out, "C_fp32_img_logits", 2e-2)
    assert tiny.fields(out / "config.json")["model_type"] == "llava_llama"


@pytest.mark.parametrize("file", ["model.safetensors", "new .bin", "old .bin"])
def test_merging_in_full_precision_is_exact(golden: Path, tmp_path: Path, file: str) -> None:
    base = golden / tiny.LANGUAGE
    if file.endswith(".bin"):
        base = tmp_path / "base"
        shutil.copytree(golden / tiny.LANGUAGE, base, ignore=shutil.ignore_patterns("*.safetensors"))
        tensors = read_tensors(golden / tiny.LANGUAGE / "model.safetensors")
        is_new = file == "new .bin"
        torch.save(tensors, base / "pytorch_model.bin", _use_new_zipfile_serialization=is_new)
    adapter = tiny.adapter(tmp_path / "adapter", golden, named_base=str(base))
    merge.merge_lora(str(adapter), None, tmp_path / "merged", dtype="float32")
    assert has_golden_logits(golden, tmp_path / "merged", "C_fp32_img_logits", 5e-5)


def test_the_card_says_what_is_on_disk_and_shows_it_as_it_is(golden: Path, tmp_path: Path) -> None:
    """Also what others wrote to break its front matter, its tables or its reader's page."""
    adapter = tiny.adapter(tmp_path / "adapter", golden, named_base=str(golden / tiny.LANGUAGE))
    record = {
        "base": {"name": "team/vicuna"},
        "data": {"/home/me/a|b.json": "0" * 64, "<script>alert(1)</script>": "1" * 64},
        "recipe": {"learning_rate": 2e-4, "init_adapter": None, "version": "v1\n---\n[x](javascript:y)"},
    }
    (adapter / RUN_FILE).write_text(json.dumps(record), encoding="utf-8")
    score = Score("image", 50.0, 4, low=15.0, high=85.0, of=100, quoted=True)
    scores = Scores("seed", "image", (score,), model_id="`m`", warnings=("all answers are <b>empty</b>",))
    write_scores(tmp_path / "run", scores)
    out = tmp_path / "merged"
    merge.merge_lora(str(adapter), None, out, dtype="float32", scores=[tmp_path / "run"])

    card = ModelCard.load(out / "README.md")
    assert card.data.to_dict() == {"base_model": "team/vicuna", "pipeline_tag": "image-text-to-text"}
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in card.text.splitlines() if "|" in line
    ]
    assert ["a&#124;b.json", "0" * 64] in rows
    assert ["learning\\_rate", "0.0002"] in rows
    assert ["seed", "image", "50.00!", "\\[15.00, 85.00\\]", "4 of 100", "-", "&#96;m&#96;"] in rows
    assert not any(
        text in card.content for text in ("/home", "<script", "<b>", "[x]", "init_adapter", "None")
    )
    assert tiny.fields(out / RUN_FILE) == record

    # A wrong path is found before the model, here one that does not exist.
    for write in (merge.merge_lora, export_hf):
        with raises_code("missing-file", DataError):
            write("no/such-model", None, tmp_path / "other", scores=[tmp_path / "nowhere"])

    # Without any of it, only what the checkpoint says.
    plain = tiny.adapter(tmp_path / "plain", golden)
    merge.merge_lora(str(plain), str(golden / tiny.LANGUAGE), tmp_path / "bare")
    bare = ModelCard.load(tmp_path / "bare/README.md")
    assert bare.data.to_dict() == {"pipeline_tag": "image-text-to-text"}
    assert "tiny-vicuna" in bare.text
    assert bare.text.count("## ") == 1
    assert not (tmp_path / "bare" / RUN_FILE).exists()


def test_a_merge_that_changes_answers_fails_and_leaves_nothing(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drop_the_adapter(wrapped: Any) -> Any:
        return wrapped.unload()

    monkeypatch.setattr(merge.lora, "merge_adapter", drop_the_adapter)
    out = tmp_path / "out" / "merged"
    with raises_code("merge-changed-logits", CheckpointError):
        merge.merge_lora(str(golden / tiny.ADAPTER), str(golden / tiny.LANGUAGE), out)
    assert list(out.parent.iterdir()) == []


def test_a_full_disk_is_named_and_nothing_is_left(golden: Path, tmp_path: Path) -> None:
    full = tiny.self_trained(tmp_path / "full", golden)
    with files_of_at_most(4096), raises_code("not-writable", CheckpointError) as caught:
        merge.consolidate(str(full), tmp_path / "small")
    assert str(caught.value).startswith(f"{tmp_path / 'small'}: ")
    with files_of_at_most(4096), pytest.raises(OSError, match="too large") as error:
        write_projector_file(tmp_path / "a.bin", extract_projector(full))
    assert error.value.filename == str(tmp_path / "a.bin")
    assert [*tmp_path.iterdir()] == [full]


def test_an_existing_output_and_a_model_without_an_adapter_are_refused(golden: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").touch()
    with raises_code("output-exists", CheckpointError) as caught:
        merge.merge_lora(str(golden / tiny.ADAPTER), str(golden / tiny.LANGUAGE), tmp_path / "there")
    assert str(tmp_path / "there") in str(caught.value)
    with raises_code("not-an-adapter", CheckpointError):
        merge.merge_lora(str(tiny.self_trained(tmp_path / "full", golden)), None, tmp_path / "merged")


def test_consolidating_drops_the_tower_and_changes_nothing_else(golden: Path, tmp_path: Path) -> None:
    full = tiny.self_trained(tmp_path / "full", golden)
    merge.consolidate(str(full), tmp_path / "small")
    before = read_tensors(full / "model.safetensors")
    after = read_tensors(tmp_path / "small/model.safetensors")
    assert set(after) == {name for name in before if "vision_tower" not in name}
    assert all(torch.equal(after[name], before[name].half()) for name in after)
    assert load_pretrained_model(tmp_path / "small", device="cpu", dtype="float32")[2] is not None


SOURCES: dict[str, Callable[[Path, Path], Path]] = {
    "one_safetensors": tiny.self_trained,
    "sharded_safetensors": partial(tiny.self_trained, shards=3),
    "sharded_bin": tiny.released,
    "projector": tiny.projector_only,
    "adapter": tiny.adapter,
}


@pytest.mark.parametrize("source", SOURCES)
def test_the_projector_is_extracted_from_every_kind(source: str, golden: Path, tmp_path: Path) -> None:
    folder = SOURCES[source](tmp_path / "model", golden)
    write_projector_file(tmp_path / "out/mm_projector.bin", extract_projector(folder))
    found = torch.load(tmp_path / "out/mm_projector.bin", weights_only=True)
    trained = golden / (
        f"{tiny.ADAPTER}/non_lora_trainables.bin"
        if source == "adapter"
        else f"{tiny.PROJECTOR}/mm_projector.bin"
    )
    wanted = {
        name.removeprefix("base_model.model."): tensor for name, tensor in read_tensors(trained).items()
    }
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_extracting_from_a_model_without_a_projector_fails_in_one_line(
    golden: Path, repo: Path, tmp_path: Path
) -> None:
    script, out = repo / "scripts/extract_mm_projector.py", tmp_path / "mm_projector.bin"
    result = run_script(script, "--model-path", golden / tiny.LANGUAGE, "--output", out)
    assert (result.returncode, out.exists()) == (2, False)
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert str(golden / tiny.LANGUAGE) in error
    assert "mm_projector" in error
    assert "Traceback" not in result.stderr


def fresh_adapter(golden: Path, **settings: Any) -> Any:
    model = load_pretrained_model(
        golden / tiny.PROJECTOR, golden / tiny.LANGUAGE, device="cpu", dtype="float32"
    )[1]
    wrapped = add_adapter(model, r=4, alpha=8, **settings)
    torch.manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    wrapped.get_base_model().get_model().mm_projector.requires_grad_(True)
    return wrapped.eval()


def test_a_written_adapter_is_read_back_as_it_was(golden: Path, tmp_path: Path) -> None:
    wrapped = fresh_adapter(golden)
    state = split_trained_state(wrapped.named_parameters())
    write_adapter(tmp_path, wrapped, state.adapter)
    write_non_lora(tmp_path, state.non_lora)
    wrapped.config.save_pretrained(tmp_path)
    ids = torch.tensor([[1, 50, 60, 70, 80]])
    again = load_pretrained_model(tmp_path, golden / tiny.LANGUAGE, device="cpu", dtype="float32")[1]
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, wrapped(ids).logits, atol=5e-5)
    # The original's files, names and all.
    assert (
        read_tensors(tmp_path / "adapter_model.safetensors").keys()
        == read_tensors(golden / tiny.ADAPTER / "adapter_model.safetensors").keys()
    )
    assert (
        read_tensors(tmp_path / "non_lora_trainables.bin").keys()
        == read_tensors(golden / tiny.ADAPTER / "non_lora_trainables.bin").keys()
    )
    old = tiny.fields(golden / tiny.ADAPTER / "adapter_config.json")
    new = tiny.fields(tmp_path / "adapter_config.json")
    assert new.keys() <= old.keys()  # what PEFT 0.7 knew
    assert sorted(old["target_modules"]) == new["target_modules"]


def test_a_stored_precision_can_be_chosen(golden: Path, tmp_path: Path) -> None:
    wrapped = fresh_adapter(golden)
    adapter = split_trained_state(wrapped.named_parameters()).adapter
    write_adapter(tmp_path, wrapped, adapter, torch.bfloat16)
    stored = read_tensors(tmp_path / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


def test_biases_are_saved_as_asked(golden: Path) -> None:
    wrapped = fresh_adapter(golden, bias="all")
    adapter = split_trained_state(wrapped.named_parameters(), "all").adapter
    assert {name for name in adapter if "lora_" not in name} == {
        f"base_model.model.model.mm_projector.{index}.bias" for index in (0, 2)
    } | {
        name for name in dict(wrapped.named_parameters()) if "vision_tower" in name and name.endswith("bias")
    }
    assert all(
        "lora_" in name for name in split_trained_state(wrapped.named_parameters(), "lora_only").adapter
    )


def test_a_written_projector_has_the_originals_names(golden: Path, tmp_path: Path) -> None:
    trained = read_tensors(golden / tiny.ADAPTER / "non_lora_trainables.bin")
    write_projector(tmp_path, trained)
    written = read_tensors(tmp_path / "mm_projector.bin")
    assert written.keys() == read_tensors(golden / tiny.PROJECTOR / "mm_projector.bin").keys()


def test_a_model_with_vicunas_generation_config_can_be_saved(golden: Path, tmp_path: Path) -> None:
    model = LlavaLlamaForCausalLM.from_pretrained(golden / tiny.LANGUAGE, dtype=torch.float16)
    for settings in (
        {"temperature": 0.9, "top_p": 0.6, "do_sample": False},
        {"typical_p": 0.5, "do_sample": False},
    ):
        model.generation_config.update(**settings)
        model.save_pretrained(tmp_path)
        again = LlavaLlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float16)
        assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_damaged_input_leaves_no_output(golden: Path, tmp_path: Path) -> None:
    adapter = tiny.adapter(tmp_path / "adapter", golden)
    (adapter / "non_lora_trainables.bin").unlink()
    with raises_code("missing-projector", CheckpointError):
        merge.merge_lora(str(adapter), str(golden / tiny.LANGUAGE), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]
