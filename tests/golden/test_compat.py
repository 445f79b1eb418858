"""What other programs import from the original is here, takes its parameters and gives its results."""

from __future__ import annotations

import importlib
import inspect
import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava import conversation
from llava.compat import process
from llava.constants import IGNORE_INDEX
from llava.conversation import conv_templates
from llava.eval import eval_pope, m4c_evaluator, model_vqa_loader, model_vqa_mmbench, run_llava
from llava.eval.eval_science_qa import convert_caps, get_pred_idx
from llava.mm_utils import process_images
from llava.model.apply_delta import apply_delta
from llava.model.builder import load_pretrained_model
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.make_delta import make_delta
from llava.model.multimodal_encoder.builder import write_vision_model
from llava.model.utils import auto_upgrade
from llava.tokenizer import load_tokenizer
from llava.train import train as train_module
from llava.train.arguments import parse_arguments
from llava.train.checkpointing.save import copy_vocabulary
from llava.train.llava_trainer import LLaVATrainer
from llava.train.train import Assembled, assemble
from llava.utils import pretty_print_semaphore, violates_moderation
from support import tiny_checkpoints as tiny
from support.errors import raises_code

# Modules of the original that this package does not have.
LEFT_OUT_MODULES = {
    "llava.eval.eval_gpt_review": "asks GPT-4; `llava benchmarks` writes the files that judges take",
    "llava.eval.eval_gpt_review_bench": "likewise",
    "llava.eval.eval_gpt_review_visual": "likewise",
    "llava.eval.eval_science_qa_gpt4": "compares with GPT-4's answers, which are not published",
    "llava.eval.eval_science_qa_gpt4_requery": "likewise",
    "llava.eval.generate_webpage_data_from_table": "builds a web page of Vicuna's",
    "llava.eval.model_qa": "Vicuna's, without images",
    "llava.eval.qa_baseline_gpt35": "asks GPT-3.5",
    "llava.eval.summarize_gpt_review": "reads what eval_gpt_review writes",
    "llava.model.language_model.llava_mistral": "another language model",
    "llava.model.language_model.llava_mpt": "another language model",
    "llava.serve.controller": "the original's file runs on this package",
    "llava.serve.gradio_web_server": "likewise",
    "llava.serve.model_worker": "likewise",
    "llava.serve.sglang_worker": "likewise",
    "llava.serve.test_message": "likewise",
    "llava.train.llama_flash_attn_monkey_patch": "transformers chooses the attention; see train_mem.py",
    "llava.train.llama_xformers_attn_monkey_patch": "likewise",
}
# Names and parameters that a module of ours lacks.
LEFT_OUT = {
    "llava.eval.eval_science_qa.get_args": "reads this one command's flags",
    "llava.eval.eval_textvqa.get_args": "likewise",
    "llava.model.multimodal_encoder.clip_encoder.CLIPVisionTower.load_model(device_map)": "in **kwargs",
    "llava.model.multimodal_encoder.clip_encoder.CLIPVisionTowerS2": "needs the package s2wrapper",
    "llava.model.multimodal_projector.builder.IdentityMap": "torch.nn.Identity",
    "llava.model.multimodal_projector.builder.SimpleResBlock": "the original does not use it either",
    "llava.train.train.IS_TOKENIZER_GREATER_THAN_0_14": "always true",
    "llava.train.train.local_rank": "set and read by the original's train() only",
    "llava.train.llava_trainer.get_length_grouped_indices(merge)": "has no effect in the original",
    "llava.model.language_model.llava_llama.LlavaLlamaForCausalLM.forward(output_attentions)": "in **kwargs",
    "llava.model.language_model.llava_llama.LlavaLlamaForCausalLM.forward(output_hidden_states)": "likewise",
    "llava.model.language_model.llava_llama.LlavaLlamaForCausalLM.forward(return_dict)": "likewise",
    "llava.utils.handler": "a log file of the whole process",
    "llava.utils.StreamToLogger": "would redirect stdout and stderr of the whole process",
}

Source = list[dict[str, str]]


# Every public name of the original at c121f04, with its parameters.
NAMES: dict[str, dict[str, list[str] | None]] = json.loads(
    (Path(__file__).parents[1] / "data/original_names.json").read_text()
)


def lacks(module: str, name: str, parameters: list[str] | None) -> list[str]:
    """What a module of ours lacks of one of the original's names: itself, or parameters of it."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        look_up: Any = inspect.getattr_static if inspect.isclass(found) else getattr
        found = look_up(found, part, None)
        if found is None:
            return [f"{module}.{name}"]
    if parameters is None or isinstance(found, property):
        return []
    ours = list(inspect.signature(found).parameters)
    return [f"{module}.{name}({each})" for each in parameters if each not in ours]


def test_every_name_of_the_original_is_here_or_left_out_on_purpose() -> None:
    missing = [
        one
        for module, own in NAMES.items()
        if module not in LEFT_OUT_MODULES
        for name, parameters in own.items()
        for one in lacks(module, name, parameters)
    ]
    known = {one for one in missing if any(one == out or one.startswith(f"{out}.") for out in LEFT_OUT)}
    assert set(missing) == known
    assert set(LEFT_OUT) <= known  # remove what has come
    assert set(LEFT_OUT_MODULES) <= set(NAMES)


def test_parameters_come_in_the_originals_order() -> None:
    """Programs pass them by position."""
    for module, own in NAMES.items():
        for name, wanted in own.items() if module not in LEFT_OUT_MODULES else ():
            found = getattr(importlib.import_module(module), name, None)
            if wanted and inspect.isfunction(found):
                ours = [each for each in inspect.signature(found).parameters if each in wanted]
                assert ours == [each for each in wanted if each in ours], f"{module}.{name}"


# ---- training data


@pytest.mark.parametrize("version", ["plain", "v1", "v1_mmtag", "llava_llama_2", "mpt", "v0"])
def test_preprocess_gives_the_originals_tensors(
    golden: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads((golden / "iii_preprocess.json").read_text())
    cases = {case["name"]: case for case in record["cases"]}
    tokenizer = load_tokenizer(golden / tiny.LANGUAGE)
    tokenizer.pad_token = tokenizer.unk_token
    monkeypatch.setattr(conversation, "default_conversation", conv_templates[version])
    compared = 0
    for row in record["results"]:
        if (row["tok"], row["version"]) != ("tiny", version) or "error" in row or row["stdout"]:
            continue
        tokenizer.model_max_length = row["max_len"]
        case = cases[row["case"]]
        source: Source = [dict(turn) for turn in case["conversations"]]
        settings = Namespace(is_multimodal=case["has_image"], mm_use_im_start_end=row["im_start_end"])
        (source,) = train_module.preprocess_multimodal([source], settings)
        if case["has_image"]:
            assert [turn["value"] for turn in source] == row["after_multimodal"]
        made = train_module.preprocess([source], tokenizer, has_image=case["has_image"])
        assert made["input_ids"][0].tolist() == row["input_ids"], row["case"]
        if version not in ("mpt", "v0"):  # see tests/golden/test_prompts.py
            assert made["labels"][0].tolist() == row["labels"], row["case"]
        compared += 1
    assert compared > 5


def test_conversations_without_images_are_padded_together(golden: Path) -> None:
    tokenizer = load_tokenizer(golden / tiny.LANGUAGE)
    tokenizer.pad_token = tokenizer.unk_token
    short = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Yes."}]
    long = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Yes, of course I do."}]
    made = train_module.preprocess_v1([short, long], tokenizer)
    ids, labels = made["input_ids"], made["labels"]
    alone = train_module.preprocess_v1([short], tokenizer)["input_ids"][0]
    assert ids.shape == labels.shape
    assert torch.equal(ids[0, : len(alone)], alone)
    assert set(ids[0, len(alone) :].tolist()) == {tokenizer.pad_token_id}
    assert set(labels[0, len(alone) :].tolist()) == {IGNORE_INDEX}
    with pytest.raises(AssertionError):
        train_module.preprocess_llama_2([short], tokenizer)  # default_conversation has another style
    tokens = train_module._tokenize_fn(["Hi.", "Yes, of course"], tokenizer)
    assert [len(row) for row in tokens["input_ids"]] == tokens["input_ids_lens"] == tokens["labels_lens"]


def test_the_data_set_uses_the_template_that_a_program_sets(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(golden / tiny.LANGUAGE)
    turns = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Yes."}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "a", "conversations": turns}]))
    settings = Namespace(
        data_path=str(tmp_path / "data.json"), is_multimodal=False, mm_use_im_start_end=False
    )
    monkeypatch.setattr(conversation, "default_conversation", conv_templates["mpt"])
    data = train_module.make_supervised_data_module(tokenizer, settings)["train_dataset"]
    wanted = train_module.preprocess_mpt([turns], tokenizer)
    assert data[0]["input_ids"].tolist() == wanted["input_ids"][0].tolist()


# ---- training


@dataclass
class ForeignArguments(transformers.TrainingArguments):
    """A fork's own, with some of the original's fields."""

    remove_unused_columns: bool = False
    mm_projector_lr: float | None = None
    group_by_modality_length: bool = False


def foreign_trainer(
    assembled: Assembled, output: Path, kind: Any = ForeignArguments, **changes: Any
) -> LLaVATrainer:
    """Create a trainer as the original's `train()` does, with other arguments than ours."""
    own = assembled.training_args
    same = "max_steps per_device_train_batch_size gradient_accumulation_steps learning_rate seed bf16 "
    same += (
        "lr_scheduler_type warmup_steps logging_steps mm_projector_lr weight_decay group_by_modality_length"
    )
    settings = {name: getattr(own, name) for name in same.split() if name in kind.__dataclass_fields__}
    settings |= {"use_cpu": True, "report_to": [], "save_strategy": "no", **changes}
    return LLaVATrainer(
        model=assembled.model,
        tokenizer=assembled.tokenizer,
        args=kind(output_dir=str(output), **settings),
        train_dataset=assembled.dataset,
        eval_dataset=None,
        data_collator=train_module.DataCollatorForSupervisedDataset(assembled.tokenizer),
    )


@pytest.mark.slow
def test_arguments_of_another_program_train_as_the_original(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(golden)
    expected = json.loads((golden / "viii_lora.json").read_text())
    assembled = assemble(*parse_arguments([*expected["argv"], "--output_dir", str(tmp_path / "x")]))
    own = dict(assembled.model.named_parameters())
    with torch.no_grad():
        for name, tensor in load_file(golden / "viii_lora/initial_trainable.safetensors").items():
            own[name].copy_(tensor)
    output = tmp_path / "lora"
    trainer = foreign_trainer(assembled, output, save_strategy="steps", save_steps=6)
    trainer.train()

    accumulated = trainer.args.gradient_accumulation_steps
    micro = [batch["loss"] for batch in expected["batches"]]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    means = [sum(micro[i : i + accumulated]) / accumulated for i in range(0, len(micro), accumulated)]
    assert losses == pytest.approx(means, abs=1.5e-5)

    # As the original's train() saves: PEFT writes only what has its own names.
    state = train_module.get_peft_state_maybe_zero_3(assembled.model.named_parameters(), "none")
    assembled.model.save_pretrained(output, state_dict=state)
    written = load_file(output / "adapter_model.safetensors")
    theirs = load_file(golden / "viii_lora/adapter_model.safetensors")
    assert set(written) == set(theirs)
    for name, tensor in theirs.items():
        torch.testing.assert_close(written[name], tensor, atol=1.6e-4, rtol=0)
    train_module.safe_save_model_for_hf_trainer(trainer, str(tmp_path / "again"))
    again = load_file(tmp_path / "again/adapter_model.safetensors")
    assert all(torch.equal(again[name], written[name]) for name in written)
    assert (output / "checkpoint-6/non_lora_trainables.bin").is_file()


def test_plain_arguments_train_only_a_projector(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(golden)
    argv = [*json.loads((golden / "viii_pretrain.json").read_text())["argv"], "--max_steps", "1"]
    assembled = assemble(*parse_arguments([*argv, "--output_dir", str(tmp_path / "x")]))
    trainer = foreign_trainer(assembled, tmp_path / "y", transformers.TrainingArguments)
    assert trainer.kind == "projector"
    trainer.train()
    train_module.safe_save_model_for_hf_trainer(trainer, str(tmp_path / "y"))
    names = set(torch.load(tmp_path / "y/mm_projector.bin", weights_only=True))
    assert names == set(torch.load(golden / "viii_pretrain/mm_projector.bin", weights_only=True))


# As the Trainer of transformers 4.37.2 counts, seen by running it: scripts/bench/clients.py.
@pytest.mark.parametrize(
    ("samples", "batch", "accumulation", "epochs", "steps"),
    [(48, 5, 3, 2, 6), (33, 4, 2, 1.5, 6), (26, 5, 2, 2.3, 7)],
)
def test_a_run_has_the_originals_number_of_steps(
    samples: int, batch: int, accumulation: int, epochs: float, steps: int, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.LlamaConfig(vocab_size=8, **sizes)
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
        use_cpu=True,
        report_to=[],
    )
    trainer: Any = LLaVATrainer(transformers.LlamaForCausalLM(config), args, train_dataset=[{}] * samples)
    loader = trainer.get_train_dataloader()
    assert trainer.set_initial_training_values(args, loader)[-1] == steps


Base: Any = LLaVATrainer


class OldTrainer(Base):
    """A fork's, with the methods and the parameters of transformers 4.37."""

    calls: list[str]

    def _get_train_sampler(self) -> Any:
        self.calls.append("sampler")
        return self.sampler

    def create_optimizer(self) -> Any:
        self.calls.append("optimizer")
        return super().create_optimizer()

    def training_step(self, model: Any, inputs: Any) -> Any:
        self.calls.append("step")
        return super().training_step(model, inputs)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
        loss = super().compute_loss(model, inputs, return_outputs)
        self.calls.append(f"loss {len(inputs['input_ids'])}")
        return 2 * loss

    def log(self, logs: dict[str, float]) -> None:
        self.calls.append("log")
        super().log(logs)


class Backwards(torch.utils.data.Sampler[int]):
    """A sampler that draws from a generator of its own."""

    def __init__(self, size: int) -> None:
        self.size, self.generator = size, torch.Generator().manual_seed(1)
        self.drawn: list[list[int]] = []

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Any:
        self.drawn.append(torch.randperm(self.size, generator=self.generator).tolist()[::-1])
        return iter(self.drawn[-1])


@pytest.mark.parametrize("kind", [Backwards, None])
def test_a_forks_trainer_overrides_with_its_older_parameters(
    kind: type[Backwards] | None, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(golden)
    argv = [*json.loads((golden / "viii_pretrain.json").read_text())["argv"], "--num_train_epochs", "2"]
    argv += ["--per_device_train_batch_size", "16", "--gradient_accumulation_steps", "2"]
    assembled = assemble(*parse_arguments([*argv, "--output_dir", str(tmp_path / "x"), "--max_steps", "-1"]))
    dataset = assembled.dataset
    changes = {"max_steps": -1 if kind else 1, "num_train_epochs": 2, "logging_steps": 1}
    own = foreign_trainer(assembled, tmp_path / "y", **changes)
    batch = own.data_collator([dataset[0], dataset[1]])
    wanted = own.compute_loss(own.model, dict(batch)).item()

    trainer: Any = foreign_trainer(assembled, tmp_path / "y", **changes)
    trainer.__class__, trainer.calls, trainer.sampler = OldTrainer, [], kind and kind(len(dataset))
    assert trainer.compute_loss(trainer.model, dict(batch)).item() == pytest.approx(2 * wanted)
    seen: list[list[int]] = []
    collate = trainer.data_collator
    numbers = {dataset.samples[index].id: index for index in range(len(dataset))}
    trainer.data_collator = lambda items: (seen.append([numbers[i["id"]] for i in items]), collate(items))[1]
    trainer.calls.clear()
    trainer.train()
    assert {"sampler", "optimizer", "step", "loss 16", "log"} <= set(trainer.calls)
    order = [index for one in seen for index in one]
    if kind:  # the original's steps: the first epoch's odd batch begins the second epoch's
        batches = -(-len(dataset) // 16)
        assert trainer.state.global_step == 2 * (batches // 2)
        assert order == [index for drawn in trainer.sampler.drawn for index in drawn][: len(order)]
        assert len(trainer.sampler.drawn) == 2
    else:
        assert order[:16] == list(range(16))


def test_a_fork_reads_the_records_of_the_data_set(golden: Path, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Yes."}]
    rows = [{"id": name, "conversations": turns, "bbox": [1, 2], "note": {"by": name}} for name in "abc"]
    rows[1] = {"id": "b", "conversations": []}
    for name, text in (
        ("data.json", json.dumps(rows)),
        ("data.jsonl", "\n\n".join(map(json.dumps, rows)) + "\n"),
    ):
        path = tmp_path / name
        path.write_text(text)
        settings = Namespace(is_multimodal=False, mm_use_im_start_end=False)
        tokenizer = load_tokenizer(golden / tiny.LANGUAGE)
        dataset = train_module.LazySupervisedDataset(str(path), tokenizer, settings, bad_samples="skip")
        assert list(dataset.list_data_dict) == [rows[0], rows[2]]
        assert len(dataset.list_data_dict) == len(dataset)
        assert list(dataset.subset(np.array([1])).list_data_dict) == [rows[2]]
        with raises_code("records-from-file"):
            dataset.list_data_dict = rows[:1]

    class Own(train_module.LazySupervisedDataset):
        def __init__(self, records: Source) -> None:
            self.list_data_dict = records

    assert Own([{"id": "a"}]).list_data_dict == [{"id": "a"}]


class _Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(4, 4)
        self.mm_projector = nn.Linear(4, 4)


def test_what_a_lora_run_saves_has_the_models_own_names() -> None:
    target = LoraConfig(target_modules=["q_proj"], modules_to_save=["mm_projector"], bias="lora_only")
    model: Any = get_peft_model(_Tiny(), target)
    named = list(model.named_parameters())
    lora = {name for name, _ in named if "lora_" in name}
    assert all(".default." in name for name in lora)
    bias = "base_model.model.q_proj.base_layer.bias"
    assert set(train_module.get_peft_state_maybe_zero_3(named, "none")) == lora
    assert set(train_module.get_peft_state_maybe_zero_3(named, "lora_only")) == lora | {bias}
    assert {*lora, bias} < set(train_module.get_peft_state_maybe_zero_3(named, "all"))
    with pytest.raises(NotImplementedError):
        train_module.get_peft_state_maybe_zero_3(named, "some")
    rest = {name for name, _ in named} - lora
    assert set(train_module.get_peft_state_non_lora_maybe_zero_3(named, False)) == rest
    assert set(train_module.get_peft_state_non_lora_maybe_zero_3(named)) < rest
    copied = train_module.maybe_zero_3(dict(named)[bias], ignore_status=True, name=bias)
    assert copied.shape == (4,)
    assert train_module.find_all_linear_names(_Tiny()) == ["q_proj"]


def test_another_tokenizers_vocabulary_is_kept(golden: Path, tmp_path: Path) -> None:
    other = transformers.AutoTokenizer.from_pretrained(golden / tiny.LANGUAGE, use_fast=False)
    other.save_pretrained(tmp_path)
    copy_vocabulary(other, tmp_path)
    text = "What is it? A cat."
    assert load_tokenizer(tmp_path)(text).input_ids == load_tokenizer(golden / tiny.LANGUAGE)(text).input_ids


# ---- serving


def test_a_semaphores_state_is_the_originals_text() -> None:
    import asyncio

    assert pretty_print_semaphore(None) == "None"
    assert pretty_print_semaphore(asyncio.Semaphore(5)) == "Semaphore(value=5, locked=False)"


def test_moderation_asks_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.headers["Authorization"], body))
            reply = b'{"results": [{"flagged": true}]}' if "bad" in body["input"] else b"{}"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Service) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(process, "MODERATION_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OPENAI_API_KEY", "key")
        assert violates_moderation('a "bad"\nword') is True
        assert violates_moderation("good") is False
        server.shutdown()
    assert violates_moderation("bad") is False  # nobody answers
    assert asked[0] == ("Bearer key", {"input": 'a "bad"word'})


# ---- evaluation


def test_chunks_are_the_originals() -> None:
    assert model_vqa_loader.split_list(list(range(9)), 4) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert model_vqa_loader.get_chunk(list(range(9)), 4, 2) == [6, 7, 8]
    with pytest.raises(IndexError):
        model_vqa_loader.get_chunk(list(range(9)), 4, 3)
    row = {"A": "x", "B": "y", "C": float("nan"), "D": "z"}
    assert model_vqa_mmbench.get_options(row, model_vqa_mmbench.all_options) == ["x", "y"]
    cells = (None, "NaN", "none", 0, "")
    assert [model_vqa_mmbench.is_none(cell) for cell in cells] == [True, True, True, False, False]
    assert get_pred_idx("B", ["x", "y"], ["A", "B", "C"]) == 1
    assert get_pred_idx("C", ["x", "y"], ["A", "B", "C"]) == -1
    assert convert_caps([{"question_id": "7", "text": "a cat"}]) == [{"image_id": 7, "caption": "a cat"}]


@pytest.mark.parametrize("sets_args", [True, False])
def test_the_loader_asks_with_the_programs_template(
    golden: Path, monkeypatch: pytest.MonkeyPatch, sets_args: bool
) -> None:
    tokenizer, model, processor, _ = load_pretrained_model(
        golden / "weights/tiny-pretrain", golden / tiny.LANGUAGE, device="cpu"
    )
    if sets_args:
        monkeypatch.setattr(model_vqa_loader, "args", Namespace(conv_mode="vicuna_v1"), raising=False)
    image = next((golden / "images").glob("*.png"))
    questions = [{"question_id": 1, "image": image.name, "text": "What?"}]
    loader = model_vqa_loader.create_data_loader(
        questions, str(image.parent), tokenizer, processor, model.config, num_workers=0
    )
    ((ids, pixels, sizes),) = list(loader)
    text = tokenizer.decode([token for token in ids[0].tolist() if token >= 0], skip_special_tokens=True)
    assert text.startswith("A chat between")
    assert sets_args == ("curious user" in text)
    picture = run_llava.load_image(str(image))
    assert picture.mode == "RGB"
    assert sizes == (picture.size,)
    assert torch.equal(pixels[0], process_images([picture], processor, model.config)[0])
    flags = Namespace(image_file=f"{image},{image}", sep=",")
    assert len(run_llava.load_images(run_llava.image_parser(flags))) == 2
    assert run_llava.process_images is process_images


def test_pope_counts_position_by_position(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = [{"label": label} for label in ("yes", "no", "yes", "no")]
    path = tmp_path / "coco_pope_x.json"
    path.write_text("".join(json.dumps(label) + "\n" for label in labels))
    answers = [{"text": text} for text in ("Yes, it is.", "No. Yes.", "There is not", "yes")]
    eval_pope.eval_pope(answers, str(path))
    assert [answer["text"] for answer in answers] == ["yes", "no", "no", "yes"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["TP\tFP\tTN\tFN\t", "1\t1\t1\t1", "Accuracy: 0.5"]
    assert lines[-1] == "0.500, 0.500, 0.500, 0.500, 0.500"


def test_the_evaluators_of_short_answers_are_the_originals() -> None:
    entries = [
        {"pred_answer": "Coca Cola", "gt_answers": ["coca-cola", "the coca cola"]},
        {"pred_answer": "two", "gt_answers": ["3"]},
    ]
    assert m4c_evaluator.STVQAAccuracyEvaluator().eval_pred_list(entries) == 0.5
    anls = m4c_evaluator.STVQAANLSEvaluator()
    assert anls.get_anls(" Coca-Cola", "coca cola") == pytest.approx(1 - 1 / 9)
    assert anls.get_anls("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert anls.get_anls("abc", "xyz") == 0.0
    assert anls.eval_pred_list([{"pred_answer": "abc", "gt_answers": ["xyz", "abd"]}]) == pytest.approx(2 / 3)
    words = m4c_evaluator.EvalAIAnswerProcessor()
    assert words.word_tokenize("Is it John's, really?") == "is it john 's really"
    assert words.process_punctuation("a,b c.") == "a b c"
    assert words.process_digit_article("The two cats dont") == "2 cats don't"
    empty: list[Callable[[list[Any]], float]] = [anls.eval_pred_list]
    for evaluate in empty:
        with raises_code("no-answers"):
            evaluate([])


# ---- whole checkpoints


def test_a_delta_gives_the_model_back(golden: Path, tmp_path: Path) -> None:
    base = golden / tiny.LANGUAGE
    target = tiny.self_trained(tmp_path / "target", golden)
    weights = load_file(target / "model.safetensors")
    make_delta(str(base), str(target), str(tmp_path / "delta"), None)
    apply_delta(str(base), str(tmp_path / "again"), str(tmp_path / "delta"))
    again = load_file(tmp_path / "again/model.safetensors")
    delta = load_file(tmp_path / "delta/model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not delta[name].any()
    assert torch.equal(again[name], weights[name].half())
    assert torch.equal(again["model.mm_projector.0.weight"], weights["model.mm_projector.0.weight"].half())
    assert (tmp_path / "again/tokenizer.model").is_file()


def test_an_old_checkpoint_is_upgraded_only_after_a_yes(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "llava-v0"
    tiny.write_config(folder, golden, "weights/tiny-pretrain", model_type="llama")
    before = (folder / "config.json").read_text()
    monkeypatch.setattr("builtins.input", lambda _: "n")
    with pytest.raises(SystemExit):
        auto_upgrade(str(folder))
    assert (folder / "config.json").read_text() == before
    monkeypatch.setattr("builtins.input", lambda _: "Y")
    auto_upgrade(str(folder))
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llava"
    auto_upgrade(str(folder))  # asks no more


def test_no_precision_by_its_old_name_is_float32(golden: Path, tmp_path: Path) -> None:
    folder = tiny.self_trained(tmp_path / "model", golden)
    half = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    tiny.write_weights(folder, half, suffix=".safetensors")
    assert LlavaLlamaForCausalLM.from_pretrained(folder, torch_dtype=None).dtype == torch.float32
    assert LlavaLlamaForCausalLM.from_pretrained(folder, torch_dtype=torch.bfloat16).dtype == torch.bfloat16


# ---- files that transformers 4 reads

TOWER = "model.vision_tower.vision_tower.vision_model."


def test_a_full_model_is_written_under_the_originals_names(golden: Path, tmp_path: Path) -> None:
    model = load_pretrained_model(golden / "weights/tiny-pretrain", golden / tiny.LANGUAGE, device="cpu")[1]
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(tiny.multimodal(golden, tower_prefix=TOWER))
    config = json.loads((tmp_path / "config.json").read_text())
    assert {"rope_theta", "torch_dtype"} <= set(config)


def test_a_vision_model_is_written_under_the_originals_names(golden: Path, tmp_path: Path) -> None:
    published = load_file(golden / tiny.TOWER / "model.safetensors")
    clip = CLIPVisionModel(CLIPVisionConfig.from_pretrained(golden / tiny.TOWER))
    write_vision_model(clip, tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(published)
    again = CLIPVisionModel.from_pretrained(tmp_path)
    for name, tensor in clip.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_the_demos_tower_has_the_originals_names() -> None:
    names = load_file(Path(__file__).parents[2] / "playground/demo/tower/model.safetensors")
    assert all(name.startswith("vision_model.") for name in names)
