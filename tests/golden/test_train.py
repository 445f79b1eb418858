"""Training follows the original's recorded runs, saves what inference needs, and names what is wrong."""

from __future__ import annotations

import json
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava.errors import CheckpointError, DataError, LlavaError, SettingsError
from llava.infer.digests import hash_file
from llava.model.builder import load_pretrained_model
from llava.model.loading.run_record import RUN_FILE, fingerprint_base
from llava.model.loading.source import find_source
from llava.model.recipe import Recipe
from llava.model.vocabulary import grow_embeddings
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments, parse_arguments
from llava.train.checkpointing.save import lock_output_dir, saved_bytes
from llava.train.checkpointing.verify import find_damage
from llava.train.llava_trainer import LLaVATrainer
from llava.train.parser import FlagParser
from llava.train.planning.recompute import take_less_memory
from llava.train.step.row_trainer import TrainingError
from llava.train.train import Assembled, assemble, fit, train, train_with
from support import tiny_checkpoints as tiny
from support.errors import raises_code
from support.training_processes import equal_bits

# Ten times the differences that were seen between the original and another re-implementation.
LOSS_TOLERANCE = 1.5e-5
WEIGHT_TOLERANCE = 1.6e-4


def recorded(golden: Path, run: str) -> dict[str, Any]:
    return json.loads((golden / f"{run}.json").read_text())


def flags(golden: Path, run: str, output: Path, *more: str) -> list[str]:
    """The recorded run's flags; its paths start from the golden folder."""
    return [*recorded(golden, run)["argv"], "--output_dir", str(output), *more]


def short(golden: Path, output: Path, *more: str, run: str = "viii_lora") -> list[str]:
    """A run of two steps of two samples."""
    quick = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1"]
    return flags(golden, run, output, *quick, *more)


def assembled_from(argv: list[str], initial: Path | None = None) -> Assembled:
    assembled = assemble(*parse_arguments(argv))
    if initial is not None and initial.is_file():
        own = dict(assembled.model.named_parameters())
        start = load_file(initial)
        assert set(start) == {name for name, each in own.items() if each.requires_grad}
        with torch.no_grad():
            for name, tensor in start.items():
                own[name].copy_(tensor)
    return assembled


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recorded runs are made once for all tests."""
    return tmp_path_factory.mktemp("runs")


def made(golden: Path, runs: Path, run: str) -> Path:
    """The output of a recorded run, which is made if it is not there yet."""
    if not (runs / run).is_dir():
        fit(assembled_from(flags(golden, run, runs / run), golden / run / "initial_trainable.safetensors"))
    return runs / run


@pytest.fixture(autouse=True)
def in_golden_folder(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded flags name files from there."""
    monkeypatch.chdir(golden)


@pytest.fixture
def full_model(golden: Path, runs: Path) -> Path:
    """A whole fine-tuned model."""
    output = runs / "llava-full"
    if not output.is_dir():
        train(argv=short(golden, output, run="viii_full"))
    return output


# ---- the recorded runs


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["exact", "fast"])
@pytest.mark.parametrize("run", ["viii_lora", "viii_pretrain", "viii_full"])
def test_ten_steps_follow_the_original(golden: Path, runs: Path, run: str, recipe: str) -> None:
    expected = recorded(golden, run)
    output = runs / (run if recipe == "exact" else f"{run}-{recipe}")
    argv = flags(golden, run, output, "--recipe", recipe)
    assembled = assembled_from(argv, golden / run / "initial_trainable.safetensors")
    trainer = fit(assembled)

    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    accumulated = assembled.training_args.gradient_accumulation_steps
    micro = [batch["loss"] for batch in expected["batches"]]
    assert len(steps) == len(expected["steps"]) == 10
    for place, (step, wanted) in enumerate(zip(steps, expected["steps"], strict=True)):
        means = micro[place * accumulated : (place + 1) * accumulated]
        assert step["loss"] == pytest.approx(sum(means) / accumulated, abs=LOSS_TOLERANCE)
        assert step["learning_rate"] == pytest.approx(wanted["logged"]["learning_rate"], rel=1e-9)
    assert names_in(output) == {*expected["output_files"], RUN_FILE, "README.md"}

    own = {id(each): name for name, each in assembled.model.named_parameters()}
    for group, wanted in zip(trainer.optimizer.param_groups, expected["groups"], strict=True):
        assert {own[id(each)] for each in group["params"]} == set(wanted["names"])
        assert group["weight_decay"] == wanted["weight_decay"]
        assert group["initial_lr"] == wanted["initial_lr"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "file"),
    [
        ("viii_lora", "adapter_model.safetensors"),
        ("viii_lora", "non_lora_trainables.bin"),
        ("viii_pretrain", "mm_projector.bin"),
    ],
)
def test_the_weights_end_where_the_originals_did(golden: Path, runs: Path, run: str, file: str) -> None:
    made(golden, runs, run)
    read = load_file if file.endswith(".safetensors") else lambda path: torch.load(path, weights_only=True)
    ours, theirs = read(runs / run / file), read(golden / run / file)
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        torch.testing.assert_close(ours[name], tensor, atol=WEIGHT_TOLERANCE, rtol=0)


def test_the_config_tells_readers_what_the_originals_does(golden: Path, runs: Path) -> None:
    for run in ("viii_lora", "viii_pretrain"):
        made(golden, runs, run)
        ours = json.loads((runs / run / "config.json").read_text())
        theirs = json.loads((golden / run / "config.json").read_text())
        # Null means absent to readers; the versions and the precision written down are ours.
        for name in set(theirs) - {"transformers_version", "torch_dtype"}:
            assert ours.get(name) == theirs[name], name
        assert ours["use_cache"] is True
        assert ours["conversation_template"] == ("plain" if run == "viii_pretrain" else "v1")


def test_a_run_describes_itself_and_is_not_loaded_on_another_base(
    golden: Path, runs: Path, tmp_path: Path
) -> None:
    adapter, base = made(golden, runs, "viii_lora"), golden / tiny.LANGUAGE
    record = tiny.fields(adapter / RUN_FILE)
    data = golden / "train_data/train.json"
    assert record["base"] == {"name": str(tiny.LANGUAGE), **fingerprint_base(base)}
    assert record["data"] == {str(data.relative_to(golden)): hash_file(data)}
    assert record["recipe"]["lora_r"] == tiny.fields(adapter / "adapter_config.json")["r"]
    assert (record["kind"], record["projector"], record["template"]) == ("adapter", "mlp2x_gelu", "v1")
    assert record["versions"]["torch"] == torch.__version__

    # Other files of the same weights are the same base; a checkpoint-N knows its run's.
    weights = load_file(base / "model.safetensors")
    for name, changed in (("bin", 0.0), ("half", 0.0), ("tuned", 1e-3)):
        shutil.copytree(base, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
        own = {key: each + changed for key, each in weights.items()}
        own = {key: each.half() for key, each in own.items()} if name == "half" else own
        tiny.write_weights(tmp_path / name, own, suffix=".bin", shards=3)
    shutil.copytree(adapter, tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-5" / RUN_FILE).rename(tmp_path / RUN_FILE)
    assert fingerprint_base(tmp_path / "bin") == fingerprint_base(base)
    for folder in (adapter, tmp_path / "checkpoint-5"):
        for same in (base, tmp_path / "bin", tmp_path / "half"):
            assert find_source(folder, same).base == same
        with raises_code("base-mismatch", CheckpointError):
            find_source(folder, tmp_path / "tuned")
    further = [
        "--init_adapter",
        str(adapter),
        "--pretrain_mm_mlp_adapter",
        "",
        "--model_name_or_path",
        str(tmp_path / "tuned"),
    ]
    with raises_code("base-mismatch", CheckpointError):
        assemble(*parse_arguments(short(golden, tmp_path / "out", *further)))


# ---- what is learned, and from what


@pytest.mark.parametrize(
    ("more", "config"),
    [
        (["--use_rslora", "True"], {"use_rslora": True}),
        (["--use_dora", "True"], {"use_dora": True}),
        (["--lora_target_modules", "v_proj", "q_proj"], {"target_modules": ["q_proj", "v_proj"]}),
    ],
    ids=["rslora", "dora", "targets"],
)
def test_a_kind_of_lora_is_saved_resumed_and_merged_as_trained(
    golden: Path, tmp_path: Path, more: list[str], config: dict[str, object]
) -> None:
    flags = short(
        golden, tmp_path / "out", *more, "--max_steps", "4", "--save_strategy", "steps", "--save_steps", "3"
    )
    model = fit(assemble(*parse_arguments(flags))).model.eval()
    settings = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert {name: settings[name] for name in config} == config
    saved = load_file(tmp_path / "out/adapter_model.safetensors")
    assert set(saved) == set(get_peft_model_state_dict(model))
    again = load_pretrained_model(
        tmp_path / "out", golden / "weights/tiny-vicuna-v1.5", device="cpu", dtype="float32"
    )[1]
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert (again(ids).logits - model(ids).logits).abs().max() < 1e-4
        bare = load_pretrained_model(golden / "weights/tiny-vicuna-v1.5", device="cpu", dtype="float32")[1]
        assert (bare(ids).logits - model(ids).logits).abs().max() > 1e-3

    shutil.copytree(tmp_path / "out/checkpoint-3", tmp_path / "resumed/checkpoint-3")
    train(argv=[*flags, "--output_dir", str(tmp_path / "resumed")])
    assert equal_bits(tmp_path / "out", tmp_path / "resumed")

    del saved[max(saved)]  # with DoRA, the lengths of a layer's rows
    save_file(saved, tmp_path / "out/adapter_model.safetensors")
    with raises_code("adapter-mismatch", CheckpointError):
        load_pretrained_model(tmp_path / "out", golden / "weights/tiny-vicuna-v1.5", device="cpu")


@pytest.mark.parametrize("projector_rate", [None, 3e-4])
def test_lora_plus_trains_b_matrices_at_their_own_rate(
    golden: Path, tmp_path: Path, projector_rate: float | None
) -> None:
    flags = short(
        golden, tmp_path, "--loraplus_lr_ratio", "8", "--learning_rate", "1e-3", "--weight_decay", "0.1"
    )
    place = flags.index("--mm_projector_lr")
    flags[place : place + 2] = [] if projector_rate is None else ["--mm_projector_lr", str(projector_rate)]
    trainer = fit(assemble(*parse_arguments(flags)))
    rates = {
        id(each): group["initial_lr"] for group in trainer.optimizer.param_groups for each in group["params"]
    }
    named = {name: each for name, each in trainer.model.named_parameters() if each.requires_grad}
    assert len(rates) == len(named)
    for name, parameter in named.items():
        wanted = 8e-3 if "lora_B" in name else projector_rate or 1e-3 if "mm_projector" in name else 1e-3
        assert rates[id(parameter)] == wanted, name


@pytest.mark.parametrize(
    "more",
    [
        ["--loraplus_lr_ratio", "0.5"],
        ["--use_dora", "True", "--bits", "4"],
        ["--lora_enable", "False", "--use_rslora", "True"],
        ["--lora_target_modules", "q_proj", "mm_projector"],
    ],
)
def test_a_kind_of_lora_that_cannot_be_is_refused(golden: Path, tmp_path: Path, more: list[str]) -> None:
    with pytest.raises(SettingsError, match=more[-2]):
        assemble(*parse_arguments(short(golden, tmp_path, *more)))


@pytest.mark.parametrize(("recipe", "casts"), [("fast", False), ("exact", True)])
def test_only_the_fast_recipe_leaves_an_adapters_casts_to_autocast(
    golden: Path, tmp_path: Path, recipe: str, casts: bool
) -> None:
    flags = short(golden, tmp_path, "--recipe", recipe, "--bf16", "True")
    layers = assemble(*parse_arguments(flags)).model.modules()
    assert {each.cast_input_dtype_enabled for each in layers if isinstance(each, LoraLayer)} == {casts}


def test_arguments_made_in_python_train_as_the_flags_do(golden: Path, tmp_path: Path) -> None:
    def made(*more: str) -> Any:
        kinds = (ModelArguments, DataArguments, TrainingArguments)
        return FlagParser(kinds).parse_args_into_dataclasses(short(golden, tmp_path / "python", *more))

    train(argv=short(golden, tmp_path / "flags"))
    train_with(*made())
    assert equal_bits(tmp_path / "flags", tmp_path / "python")
    with raises_code("invalid-flags", SettingsError):
        train_with(*made("--lora_r", "0"))


def test_equal_seeds_give_equal_adapters(golden: Path, tmp_path: Path) -> None:
    def initial(seed: int) -> torch.Tensor:
        model = assemble(*parse_arguments(short(golden, tmp_path, "--seed", str(seed)))).model
        return next(each for name, each in model.named_parameters() if "lora_A" in name)

    first, again, other = initial(1), initial(1), initial(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_recomputing_activations_changes_nothing(golden: Path, tmp_path: Path) -> None:
    logs = []
    for name, more in (("plain", []), ("saved", ["--gradient_checkpointing"])):
        # The first of the steps warms up at a rate of 0: only from the third on is something learned.
        trainer = fit(assembled_from(short(golden, tmp_path / name, "--max_steps", "4", *more)))
        steps = [entry for entry in trainer.state.log_history if "loss" in entry]
        logs.append([step[name] for step in steps for name in ("loss", "grad_norm")])
    assert len(logs[0]) == 8
    assert logs[0] == pytest.approx(logs[1], abs=1e-5)


@pytest.mark.parametrize("bits", ["4", "8"])
def test_a_quantised_base_is_trained_on_the_cpu(golden: Path, tmp_path: Path, bits: str) -> None:
    pytest.importorskip("bitsandbytes")
    assembled = assembled_from(short(golden, tmp_path, "--bits", bits, "--double_quant", "True"))
    base = assembled.model.get_base_model()
    assert type(base.model.layers[0].self_attn.q_proj.base_layer).__name__.startswith("Linear")
    assert type(base.model.layers[0].self_attn.q_proj.base_layer) is not torch.nn.Linear
    assert type(base.lm_head) is torch.nn.Linear
    assert type(base.model.mm_projector[0]) is torch.nn.Linear
    assert not any("Linear4bit" in type(each).__name__ for each in base.get_vision_tower().modules())
    before = base.model.mm_projector[0].weight.detach().clone()
    trainer = fit(assembled)
    assert 5 < trainer.state.log_history[0]["loss"] < 10
    assert not torch.equal(before, base.model.mm_projector[0].weight)
    assert "non_lora_trainables.bin" in names_in(tmp_path)


def test_bf16_and_tf32_run_where_there_is_no_gpu(
    golden: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        trainer = fit(assembled_from(short(golden, tmp_path, "--bf16", "True", "--tf32", "True")))
    if not torch.cuda.is_available():
        assert "--tf32 True ignored" in caplog.text
    assert trainer.model.get_vision_tower().dtype == torch.bfloat16
    assert {tensor.dtype for tensor in load_file(tmp_path / "adapter_model.safetensors").values()} == {
        torch.bfloat16
    }


def test_the_tower_follows_the_compute_type(golden: Path, tmp_path: Path) -> None:
    assembled = assembled_from(short(golden, tmp_path))
    assert assembled.model.get_vision_tower().dtype == torch.float32


def test_a_whole_llava_model_is_tuned_further_without_naming_its_parts(
    golden: Path, tmp_path: Path, full_model: Path
) -> None:
    argv = short(golden, tmp_path / "lora", "--model_name_or_path", str(full_model))
    for flag in ("--vision_tower", "--pretrain_mm_mlp_adapter", "--mm_projector_type"):
        place = argv.index(flag)
        del argv[place : place + 2]
    assembled = assembled_from(argv)
    projector = load_file(full_model / "model.safetensors")["model.mm_projector.0.weight"]
    assert torch.equal(assembled.model.get_model().mm_projector[0].weight, projector)
    assert not any(
        "vision_tower" in name for name, _ in assembled.model.named_parameters() if "lora_" in name
    )
    fit(assembled)
    assert json.loads((tmp_path / "lora" / "config.json").read_text())["mm_projector_type"] == "mlp2x_gelu"
    _, model, _, _ = load_pretrained_model(tmp_path / "lora", str(full_model), device="cpu", dtype="float32")
    assert model.get_vision_tower().is_loaded


def test_flags_may_not_contradict_the_model_to_start_from(
    golden: Path, tmp_path: Path, full_model: Path
) -> None:
    argv = short(
        golden, tmp_path, "--model_name_or_path", str(full_model), "--mm_projector_type", "mlp3x_gelu"
    )
    with raises_code("contradicts-base", SettingsError):
        train(argv=argv)


def test_a_tower_of_another_width_than_the_model_was_trained_with_is_refused(
    golden: Path, tmp_path: Path, full_model: Path
) -> None:
    config = CLIPVisionConfig.from_pretrained(golden / "weights/tiny-clip-vit-patch14-56")
    config.hidden_size, config.num_attention_heads = 32, 2
    tower = tmp_path / "tower"
    CLIPVisionModel(config).save_pretrained(tower)
    shutil.copy(golden / "weights/tiny-clip-vit-patch14-56/preprocessor_config.json", tower)
    argv = short(golden, tmp_path, "--model_name_or_path", str(full_model), "--vision_tower", str(tower))
    with pytest.raises(CheckpointError, match="tower: has 32 features, the model's projector takes 64"):
        train(argv=argv)


def test_stage_2_without_a_trained_projector_is_warned_about(
    golden: Path, tmp_path: Path, full_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for base, said in (("weights/tiny-vicuna-v1.5", True), (str(full_model), False)):
        caplog.clear()
        argv = short(golden, tmp_path, "--pretrain_mm_mlp_adapter", "", "--model_name_or_path", base)
        assemble(*parse_arguments(argv))
        assert ("projector starts from random weights" in caplog.text) is said


def test_a_projector_of_another_size_is_refused(golden: Path, tmp_path: Path) -> None:
    small = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 64))
    tensors = {f"model.mm_projector.{name}": each for name, each in small.state_dict().items()}
    torch.save(tensors, tmp_path / "small.bin")
    with pytest.raises(CheckpointError, match=r"small.bin: does not fit this model's projector: size mismat"):
        train(argv=short(golden, tmp_path, "--pretrain_mm_mlp_adapter", str(tmp_path / "small.bin")))


def test_a_projector_may_be_named_by_its_folder(golden: Path, tmp_path: Path) -> None:
    argv = short(golden, tmp_path, "--pretrain_mm_mlp_adapter", "weights/tiny-pretrain")
    weight = assembled_from(argv).model.get_model().mm_projector[0].weight
    stored = torch.load(golden / "weights/tiny-pretrain/mm_projector.bin", weights_only=True)
    assert torch.equal(weight, stored["model.mm_projector.0.weight"])


@pytest.mark.parametrize(
    "more",
    [
        ["--version", "v0"],
        ["--version", "llama_2"],
        ["--version", "mpt"],
        ["--mm_use_im_patch_token", "True"],
        ["--freeze_mm_mlp_adapter", "True"],
        ["--group_by_modality_length", "False", "--group_by_length", "True"],
    ],
)
def test_other_settings_train_what_can_be_loaded(golden: Path, tmp_path: Path, more: list[str]) -> None:
    base = tmp_path / "base"
    shutil.copytree(golden / "weights/tiny-vicuna-v1.5", base, copy_function=shutil.copyfile)
    special = json.loads((base / "special_tokens_map.json").read_text())
    (base / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": None}))
    argv = short(golden, tmp_path / "llava", "--model_name_or_path", str(base), *more)
    if "--freeze_mm_mlp_adapter" in more:
        place = argv.index("--mm_projector_lr")
        del argv[place : place + 2]
    trained = fit(assembled_from(argv)).model
    _, model, _, _ = load_pretrained_model(tmp_path / "llava", device="cpu", dtype="float32")
    assert torch.equal(model.get_model().mm_projector[0].weight, trained.get_model().mm_projector[0].weight)
    rows = 2049 if more[1] in ("v0", "True") and "freeze" not in more[0] else 2048
    assert len(model.get_input_embeddings().weight) == rows


def test_a_language_model_is_trained_without_a_tower(golden: Path, tmp_path: Path) -> None:
    rows = [row for row in json.loads((golden / "train_data/train.json").read_text()) if "image" not in row]
    data = tmp_path / "text.json"
    data.write_text(json.dumps(rows))
    argv = short(golden, tmp_path / "out", "--data_path", str(data))
    for flag in ("--vision_tower", "--pretrain_mm_mlp_adapter"):
        place = argv.index(flag)
        del argv[place : place + 2]
    trainer = fit(assembled_from(argv))
    assert trainer.state.global_step == 2


# ---- checkpoints


@pytest.mark.parametrize(
    ("run", "weights"),
    [
        ("viii_lora", {"adapter_model.safetensors", "adapter_config.json", "non_lora_trainables.bin"}),
        ("viii_pretrain", {"mm_projector.bin"}),
        ("viii_full", {"model.safetensors", "tokenizer.model"}),
    ],
)
def test_every_checkpoint_can_be_used_and_old_ones_go(
    golden: Path, tmp_path: Path, run: str, weights: set[str]
) -> None:
    output = tmp_path / "llava"
    saving = ["--max_steps", "3", "--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "1"]
    fit(assembled_from(short(golden, output, *saving, run=run)))
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-3"]
    checkpoint = output / "checkpoint-3"
    assert names_in(checkpoint) >= {"config.json", "optimizer.pt", "trainer_state.json", *weights}
    base = None if run == "viii_full" else "weights/tiny-vicuna-v1.5"
    for folder in (checkpoint, output):
        _, model, processor, _ = load_pretrained_model(folder, base, device="cpu", dtype="float32")
        assert processor is not None
        assert model.config.use_cache is True


def test_image_tokens_are_trained_saved_and_gone_on_with(golden: Path, tmp_path: Path) -> None:
    saving = ["--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1"]
    argv = [*saving, "--mm_use_im_start_end", "True"]
    fit(assembled_from(short(golden, tmp_path / "whole", *argv, run="viii_pretrain")))
    shutil.copytree(tmp_path / "whole" / "checkpoint-1", tmp_path / "cut" / "checkpoint-1")
    train(argv=short(golden, tmp_path / "cut", *argv, run="viii_pretrain"))
    ours, theirs = (
        torch.load(tmp_path / name / "mm_projector.bin", weights_only=True) for name in ("cut", "whole")
    )
    assert ours["model.embed_tokens.weight"].shape == (2050, 128)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_vocabulary_in_parts_is_not_grown(golden: Path, tmp_path: Path) -> None:
    assembled = assembled_from(short(golden, tmp_path))
    table = assembled.model.get_input_embeddings().weight
    table.ds_shape = table.shape  # as ZeRO-3 leaves it: the size beside an empty tensor
    table.data = table.data[:0]
    grow_embeddings(assembled.model, 2048)
    with pytest.raises(
        SettingsError, match="from 2048 to 2049 rows, which ZeRO-3 cannot do: use scripts/zero2"
    ):
        grow_embeddings(assembled.model, 2049)


def test_no_checkpoint_is_added_at_the_end(golden: Path, tmp_path: Path) -> None:
    fit(assembled_from(short(golden, tmp_path, "--save_strategy", "steps", "--save_steps", "100")))
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_checkpoint_without_its_last_file_is_passed_over(golden: Path, tmp_path: Path) -> None:
    saving = ["--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit(assembled_from(short(golden, whole, *saving)))
    shutil.copytree(whole / "checkpoint-2", cut / "checkpoint-2")
    # What a crash of the original's trainer leaves while it writes: a newer folder, not whole.
    (cut / "checkpoint-3").mkdir()
    (cut / "checkpoint-3" / "optimizer.pt").write_bytes(b"half")

    train(argv=short(golden, cut, *saving))
    assert equal_bits(cut, whole)


@pytest.mark.parametrize("recipe", ["exact", "fast"])
def test_an_epoch_has_the_originals_number_of_steps(golden: Path, tmp_path: Path, recipe: str) -> None:
    """10 batches an epoch, 3 a step: transformers 4.37 makes 6 steps of two epochs, carrying one over."""
    rows = json.loads((golden / "train_data/train.json").read_text())
    data = data_file(tmp_path, json.dumps((rows * 48)[:48]))
    argv = ["--data_path", data, "--max_steps", "-1", "--num_train_epochs", "2", "--recipe", recipe]
    argv += ["--per_device_train_batch_size", "5", "--gradient_accumulation_steps", "3"]
    argv += ["--lora_dropout", "0.1", "--dataloader_num_workers", "1", "--logging_steps", "1"]
    argv = short(golden, tmp_path / "out", *argv, "--save_strategy", "steps", "--save_steps", "1")
    trainer = fit(assembled_from(argv))
    logged = [entry["epoch"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx([0.3, 0.6, 0.9, 1.2, 1.5, 1.8])
    if recipe == "exact":
        return
    for step in (3, 4):  # before and within a step of batches from both epochs
        cut = tmp_path / f"cut{step}"
        shutil.copytree(tmp_path / f"out/checkpoint-{step}", cut / f"checkpoint-{step}")
        train(argv=[*argv, "--output_dir", str(cut)])
        assert equal_bits(cut, tmp_path / "out")


def test_a_finished_run_is_left_alone(golden: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    argv = short(golden, tmp_path, "--save_strategy", "steps", "--save_steps", "1")
    train(argv=argv)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with caplog.at_level("INFO"):
        train(argv=argv)
    assert "already finished" in caplog.text
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    with raises_code("other-length", SettingsError):
        train(argv=[*argv, "--max_steps", "5"])
    train(argv=[*argv, "--resume_from_checkpoint", str(tmp_path / "checkpoint-1")])
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 2


def test_a_run_with_other_flags_is_not_taken_for_this_one(golden: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    shutil.copyfile(golden / "train_data/train.json", data)
    argv = short(golden, tmp_path / "out", "--save_strategy", "steps", "--save_steps", "1")
    argv += ["--data_path", str(data)]
    train(argv=argv)
    other = [*argv, "--learning_rate", "0.5"]
    with raises_code("other-flags", SettingsError) as error:
        train(argv=other)
    assert "learning_rate 0.002, now" in str(error.value)
    rows = json.loads(data.read_text())
    data.write_text(json.dumps([*rows, rows[0]]))  # the same name, more to learn
    with raises_code("other-flags", SettingsError) as error:
        train(argv=argv)
    assert "size of data_path" in str(error.value)
    shutil.copyfile(golden / "train_data/train.json", data)
    train(argv=[*argv, "--logging_steps", "2"])  # learns the same: finished, left alone

    (tmp_path / "out" / "trainer_state.json").unlink()  # as if cut off
    with raises_code("other-flags", SettingsError) as error:
        train(argv=other)
    assert "checkpoint-2" in str(error.value)
    train(argv=[*other, "--resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-1")])
    train(argv=[*other, "--resume_from_checkpoint", "never"])


def test_two_runs_do_not_write_into_one_folder(golden: Path, tmp_path: Path) -> None:
    argv = short(golden, tmp_path)
    with lock_output_dir(tmp_path, is_writer=True):
        with raises_code("folder-in-use", SettingsError):
            train(argv=argv)
        with lock_output_dir(tmp_path, is_writer=False):  # a process of the same run
            pass
    with raises_code("unknown-template", SettingsError):
        train(argv=[*argv, "--version", "none"])
    with lock_output_dir(tmp_path, is_writer=True):  # free again also after an error
        pass
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_half_written_goes(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = short(golden, tmp_path, "--save_strategy", "steps", "--save_steps", "1")
    train(argv=argv)
    (tmp_path / ".saving-x").mkdir()
    (tmp_path / ".saving-x" / "model.safetensors").write_bytes(b"half")

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    # Training anew over old checkpoints: cut off amid the first.
    before = (tmp_path / "checkpoint-1/optimizer.pt").read_bytes()
    monkeypatch.setattr(LLaVATrainer, "_save_optimizer_and_scheduler", die)
    with pytest.raises(KeyboardInterrupt):
        train(argv=[*argv, "--resume_from_checkpoint", "never"])
    assert find_damage(tmp_path / "checkpoint-1") is None  # still the old one
    assert (tmp_path / "checkpoint-1/optimizer.pt").read_bytes() == before
    assert not list(tmp_path.glob(".saving-*"))


def test_a_lora_checkpoint_without_its_projector_is_refused(golden: Path, tmp_path: Path) -> None:
    argv = short(golden, tmp_path, "--save_strategy", "steps", "--save_steps", "1")
    train(argv=argv)
    (tmp_path / "trainer_state.json").unlink()
    shutil.rmtree(tmp_path / "checkpoint-2")
    for name in ("non_lora_trainables.bin", "SHA256SUMS"):  # as the original leaves it
        (tmp_path / "checkpoint-1" / name).unlink()
    with raises_code("missing-weights", CheckpointError):
        train(argv=argv)


class Runs:
    """What unpickles to a call."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: torch.save({"x": Runs()}, folder / "optimizer.pt"),
        lambda folder: (folder / "optimizer.pt").write_bytes(b"PK cut short"),
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
    ],
)
def test_a_damaged_checkpoint_is_said_in_one_line(
    golden: Path, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    argv = short(golden, tmp_path, "--save_strategy", "steps", "--save_steps", "1")
    fit(assembled_from(argv))
    damage(tmp_path / "checkpoint-1")
    with raises_code("damaged-checkpoint", CheckpointError) as caught:
        train(argv=[*argv, "--resume_from_checkpoint", str(tmp_path / "checkpoint-1")])
    assert str(caught.value).startswith(str(tmp_path / "checkpoint-1"))
    assert "\n" not in str(caught.value)
    assert not (golden / "ran").exists()


def test_a_base_that_holds_code_is_not_run(golden: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(golden / "weights/tiny-vicuna-v1.5", base, copy_function=shutil.copyfile)
    (base / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Runs()}, base / "pytorch_model.bin")
    with raises_code("unsafe-pickle", CheckpointError):
        train(argv=short(golden, tmp_path / "out", "--model_name_or_path", str(base)))


# ---- input that is wrong


def data_file(folder: Path, row: Any) -> str:
    path = folder / "data.json"
    path.write_text(row if isinstance(row, str) else json.dumps([row]))
    return str(path)


def conversation(human: str = "<image>\nWhat?", gpt: str = "A cat.", **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]
    return {"id": "s1", "image": "a_640x480.png", "conversations": turns, **more}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('[{"id": 1,', "data.json.*not valid JSON"),
        ("[]", "data.json: holds no sample"),
        (
            conversation(image="none.png"),
            r"record 0 \(id 's1'\): images/none.png: no such image file; .python",
        ),
        (conversation(conversations=[{"from": "robot", "value": "x"}]), "record 0 .*'s1'.*'robot'"),
        ({"id": "s1", "conversations": conversation()["conversations"]}, "'s1'.*<image>.*no image"),
    ],
)
def test_a_bad_record_is_named(golden: Path, tmp_path: Path, row: Any, message: str) -> None:
    argv = short(golden, tmp_path / "out", "--data_path", data_file(tmp_path, row))
    with pytest.raises(DataError, match=message):
        train(argv=argv)


@pytest.mark.parametrize(
    ("version", "odd", "message"),
    [
        ("v1", conversation(image="none.png"), "no such image file; .python -m llava.data.check"),
        (
            "plain",
            {"id": 2, "conversations": conversation("Hi")["conversations"]},
            "template plain takes one",
        ),
        ("plain", conversation(conversations=conversation()["conversations"] * 2), "<image> is in turns"),
        ("llama_2", {"id": 2, "conversations": conversation("")["conversations"]}, "turn 0 is empty"),
    ],
)
def test_one_odd_record_is_found_before_weights_are_read(
    golden: Path, tmp_path: Path, version: str, odd: dict[str, Any], message: str
) -> None:
    data = data_file(tmp_path, json.dumps([*[conversation()] * 20, odd]))
    base = tmp_path / "base"
    shutil.copytree(golden / "weights/tiny-vicuna-v1.5", base, copy_function=shutil.copyfile)
    (base / "model.safetensors").unlink()
    argv = short(golden, tmp_path / "out", "--data_path", data, "--model_name_or_path", str(base))
    with pytest.raises(DataError, match=rf"data.json: record 20\b.*{message}"):
        train(argv=[*argv, "--version", version])


def test_what_the_original_trains_on_stops_no_run(
    golden: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Odd rows as they come from the web: each is learned from, or counted with its reason."""
    turns = {"human": ["<image> in a feed?", "", "over " * 400, "unanswered"], "gpt": ["", "</s>", "a", ""]}
    pairs = zip(turns["human"], turns["gpt"], strict=True)
    talk = [[{"from": "human", "value": one}, {"from": "gpt", "value": other}] for one, other in pairs]
    talk[3].pop()
    talk += [[{"from": "gpt", "value": "alone"}], [{"from": "gpt", "value": "first"}, *talk[2]]]
    rows: list[Any] = [{"id": place, "conversations": said} for place, said in enumerate(talk)]
    rows += [conversation(id="7"), conversation(human="no token"), conversation(id=8, gpt=" ")]
    argv = short(golden, tmp_path / "out", "--data_path", data_file(tmp_path, json.dumps(rows)))
    more = ["--max_steps", "-1", "--num_train_epochs", "1", "--model_max_length", "128"]
    caplog.set_level("INFO", logger="llava")
    trainer = fit(assembled_from([*argv, *more]))
    assert trainer.problems == {"no answer": 3, "answer cut away": 2, "image not in text": 1}
    assert "1 records without an image contain <image> as text, first 0" in caplog.text


def test_a_broken_image_is_named_from_a_worker_process_too(golden: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    whole = (golden / "images" / "a_640x480.png").read_bytes()
    (images / "a_640x480.png").write_bytes(whole[: len(whole) // 2])
    argv = short(golden, tmp_path / "out", "--data_path", data_file(tmp_path, conversation()))
    argv += ["--image_folder", str(images), "--dataloader_num_workers", "1"]
    for check in ("True", "False"):
        with pytest.raises(
            DataError, match=r"record 0 \(id 's1'\): .*a_640x480.png: cannot be read"
        ) as caught:
            train(argv=[*argv, "--check_data", check])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (["--version", "v1.5"], SettingsError, "--version v1.5: no such template; .*vicuna_v1"),
        (["--model_name_or_path", "weights/none"], CheckpointError, "weights/none"),
        (["--vision_tower", "weights/none"], CheckpointError, "weights/none"),
        (["--pretrain_mm_mlp_adapter", "weights/none"], CheckpointError, "weights/none"),
        (["--pretrain_mm_mlp_adapter", "train_data/train.json"], CheckpointError, "train_data/train.json"),
        (["--image_aspect_ratio", "anyres"], SettingsError, "anyres"),
    ],
)
def test_a_wrong_name_is_an_error_of_one_line(
    golden: Path, tmp_path: Path, more: list[str], error: type[LlavaError], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(argv=short(golden, tmp_path, *more))


def test_images_without_a_tower_are_refused_before_weights_are_read(golden: Path, tmp_path: Path) -> None:
    argv = short(golden, tmp_path)
    place = argv.index("--vision_tower")
    del argv[place : place + 2]
    with pytest.raises(SettingsError, match="sample 's0' has an image: --vision_tower is missing"):
        train(argv=argv)


def test_a_loss_that_is_no_number_names_the_samples(golden: Path, tmp_path: Path) -> None:
    assembled = assembled_from(short(golden, tmp_path))
    with torch.no_grad():
        assembled.model.get_model().mm_projector[0].weight.fill_(float("nan"))
    with raises_code("not-finite", TrainingError):
        fit(assembled)


def test_a_layer_that_the_tower_has_not_is_refused_before_weights_are_read(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava.train.build.load_language_model", None)
    with pytest.raises(CheckpointError, match=r"mm_vision_select_layer is -99, the tower has \d+ layers"):
        assembled_from(short(golden, tmp_path, "--mm_vision_select_layer", "-99"))


def test_a_gradient_that_is_no_number_changes_no_weight(golden: Path, tmp_path: Path) -> None:
    assembled = assembled_from(short(golden, tmp_path))
    weight = assembled.model.get_model().mm_projector[0].weight
    before = weight.detach().clone()
    weight.register_hook(lambda gradient: gradient * float("nan"))
    with raises_code("not-finite", TrainingError):
        fit(assembled)
    assert torch.equal(before, weight)


def learn_with_little_memory(golden: Path, output: Path, needed: int, *more: str) -> LLaVATrainer:
    """A run in whose second backward pass memory runs out unless so many layers are recomputed."""
    steps = ["--gradient_accumulation_steps", "2", "--lora_dropout", "0", "--micro_batch_tokens", "0"]
    assembled = assembled_from(short(golden, output, *steps, *more))
    layers = assembled.model.get_base_model().get_decoder().layers
    calls: list[int] = []

    def run_out(gradient: torch.Tensor) -> None:
        calls.append(sum(layer.gradient_checkpointing for layer in layers))
        if len(calls) > 1 and calls[-1] < needed:
            raise torch.OutOfMemoryError("CUDA out of memory")

    weights = assembled.model.named_parameters()
    next(each for name, each in weights if "layers.1." in name and "lora_B" in name).register_hook(run_out)
    return fit(assembled)


def test_a_step_that_runs_out_of_memory_starts_again_and_recomputes_more(
    golden: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recompute = ["--gradient_checkpointing", "True", "--checkpoint_layers", "0"]
    enough = learn_with_little_memory(golden, tmp_path / "enough", 0, *recompute)
    short_of = learn_with_little_memory(golden, tmp_path / "short", 3, *recompute)
    assert [enough.recipe.checkpoint_layers, short_of.recipe.checkpoint_layers] == [0, 3]
    assert caplog.text.count("out of memory") == 2  # 2 of 4 layers, then 3
    for one, other in zip(enough.state.log_history, short_of.state.log_history, strict=True):
        assert one.get("loss") == pytest.approx(other.get("loss"), abs=LOSS_TOLERANCE)
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("enough", "short"))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=WEIGHT_TOLERANCE, rtol=0)


def test_a_step_that_cannot_take_less_memory_is_a_users_error(golden: Path, tmp_path: Path) -> None:
    with raises_code("out-of-memory", SettingsError):
        learn_with_little_memory(golden, tmp_path, 99)


def test_less_memory_means_more_recomputed_layers_then_shorter_rows() -> None:
    recipe: Recipe | None = Recipe(pack=True, micro_batch_tokens=8192, checkpoint_layers=0)
    taken = []
    while recipe is not None:
        taken.append((recipe.checkpoint_layers, recipe.micro_batch_tokens))
        recipe = take_less_memory(recipe, 32, can_recompute=True)
    recomputed = [0, 16, 24, 28, 30, 31, 32]
    assert taken == [*((each, 8192) for each in recomputed), (32, 4096), (32, 2048), (32, 1024)]
    assert take_less_memory(Recipe(pack=False, checkpoint_layers="all"), 32, can_recompute=True) is None
    assert take_less_memory(Recipe(pack=False, checkpoint_layers=0), 32, can_recompute=False) is None


class RecordReads(TorchDispatchMode):
    """Records where the trainer reads a tensor's value, for which a GPU must finish its work."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            frames = [frame for frame in traceback.extract_stack() if "/llava/" in frame.filename]
            self.places += [f"{frame.filename}:{frame.name}" for frame in frames[-1:]]
        return func(*args, **(kwargs or {}))


def test_a_trainer_waits_for_a_gpu_as_often_for_many_rows_as_for_one(golden: Path, tmp_path: Path) -> None:
    reads = []
    for positions in ("0", "1"):
        sizes = ["--per_device_train_batch_size", "4", "--micro_batch_tokens", positions]
        made = assembled_from(short(golden, tmp_path, *sizes))
        trainer = LLaVATrainer(made.model, made.training_args, train_dataset=made.dataset)
        trainer.current_gradient_accumulation_steps = 1  # train() sets it
        batch = made.collator([made.dataset[index] for index in range(4)])
        with RecordReads() as recorded_reads:
            trainer.training_step(made.model, batch)
        reads.append([place for place in recorded_reads.places if "/llava/train/" in place])
    assert reads[0] == reads[1]


def test_samples_that_teach_nothing_are_counted_and_change_nothing(
    golden: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = data_file(tmp_path, conversation(gpt=""))
    argv = short(golden, tmp_path / "out", "--data_path", data, "--weight_decay", "0")
    with pytest.MonkeyPatch.context() as patch, raises_code("nothing-to-learn", DataError):
        patch.setattr("llava.train.build.load_language_model", None)
        assembled_from(argv)
    assembled = assembled_from([*argv, "--check_data", "False"])
    weight = assembled.model.get_model().mm_projector[0].weight
    before = weight.detach().clone()
    with raises_code("nothing-to-learn", DataError):
        fit(assembled)
    assert not list((tmp_path / "out").glob("adapter*"))
    assert torch.equal(before, weight)
    assert "2 times a sample taught nothing: no answer" in caplog.text
    assert "sample 's1' teaches nothing: no answer" in caplog.text
    assert "nothing to learn in samples 's1'" in caplog.text


def test_an_answer_pushed_out_by_its_image_is_reported(
    golden: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    argv = short(golden, tmp_path / "out", "--model_max_length", "64")
    alone = assembled_from(
        [*argv, "--data_path", data_file(tmp_path, conversation()), "--check_data", "False"]
    )
    with raises_code("nothing-to-learn", DataError):
        fit(alone)
    assert "nothing to learn in samples 's1'" in caplog.text
    assert "2 times a sample taught nothing: answer cut away" in caplog.text

    # Beside samples that do teach, too: the loss says nothing of it there.
    mixed = data_file(tmp_path, json.dumps([conversation(), conversation(id="s2", human="<image>")]))
    more = ["--data_path", mixed, "--model_max_length", "77", "--output_dir", str(tmp_path / "mixed")]
    trainer: LLaVATrainer = fit(assembled_from([*argv, *more]))
    assert all(entry["loss"] > 1 for entry in trainer.state.log_history if "loss" in entry)
    assert trainer.problems == {"answer cut away": 2}


@pytest.mark.parametrize(
    ("run", "more"),
    [("viii_lora", []), ("viii_lora", ["--bf16", "True"]), ("viii_pretrain", []), ("viii_full", [])],
)
def test_the_bytes_that_a_run_will_write_are_known(
    golden: Path, tmp_path: Path, run: str, more: list[str]
) -> None:
    argv = short(golden, tmp_path, *more, "--max_steps", "1", run=run)
    trainer = fit(assembled_from([*argv, "--save_strategy", "steps", "--save_steps", "1"]))
    for folder, estimated in zip((tmp_path, tmp_path / "checkpoint-1"), saved_bytes(trainer), strict=True):
        weights = [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".safetensors")]
        assert estimated <= sum(path.stat().st_size for path in weights) < 1.5 * estimated


def test_a_disk_too_small_for_the_result_is_refused_before_training(
    golden: Path, small_disk: Callable[[int], Path]
) -> None:
    with pytest.raises(CheckpointError, match="free, the result takes"):
        fit(assembled_from(short(golden, small_disk(16) / "out")))
