"""Held-out data: whole images, the same every time; losses by kind of question as computed by hand."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from llava.data.collate import NOTES
from llava.data.held_out import held_out_mask, is_held_out
from llava.errors import SettingsError
from llava.prompts.kinds import CONVERSATION, FORMS, LETTER, SHORT, TEXT_ONLY, form_of, kinds
from llava.prompts.wording import LETTER_SUFFIX, SHORT_SUFFIX
from llava.samples import read_samples
from llava.schema import Sample, Turn
from llava.train.arguments import parse_arguments
from llava.train.checkpointing.verify import STATE_FILE, read_state
from llava.train.llava_trainer import LLaVATrainer
from llava.train.train import assemble, fit, train
from support.errors import raises_code
from support.training_processes import equal_bits, train_many

RATES = {
    "tokens_per_second",
    "supervised_tokens_per_second",
    "images_per_second",
    "samples_per_second",
    "mfu",
}


def asked(*questions: str, image: str | None = "a.jpg", kind: str | None = None) -> Sample:
    turns = [turn for text in questions for turn in (Turn("human", text), Turn("gpt", "Yes."))]
    return Sample("s", tuple(turns), image, kind)


def test_a_sample_is_of_a_form_and_of_the_type_its_record_names() -> None:
    assert kinds(asked(f"<image>\nWhere?\n{LETTER_SUFFIX}", "And now?")) == (LETTER,)
    assert kinds(asked(f"Where?\n{SHORT_SUFFIX}", kind="Instance Location")) == (SHORT, "Instance Location")
    assert kinds(asked("Where?")) == (CONVERSATION,)
    assert kinds(asked(f"Where?\n{SHORT_SUFFIX}", image=None, kind=TEXT_ONLY)) == (TEXT_ONLY,)


def test_llavas_own_mix_has_every_form_of_images(realdata: Path) -> None:
    found: dict[str, Counter[str]] = {form: Counter() for form in FORMS}
    for sample in read_samples(realdata / "mix665k/llava_v1_5_mix1k.jsonl"):
        found[form_of(sample)][str(sample.image).split("/")[0]] += 1
    assert set(found[SHORT]) >= {"gqa", "ocr_vqa"}
    assert set(found[LETTER]) == {"coco"}  # A-OKVQA
    assert found[CONVERSATION]["vg"] > found[CONVERSATION]["gqa"] == 0


def held(names: list[str | None], *, fraction: float, seed: int) -> list[bool]:
    images = pa.array(names, pa.string()).dictionary_encode()
    return held_out_mask(images, lambda place: f"id{place}", fraction=fraction, seed=seed).tolist()


def test_images_are_held_out_whole_and_the_same_ones_every_time() -> None:
    names = [f"coco/{n % 2000}.jpg" if n % 5 else None for n in range(10_000)]
    out = held(names, fraction=0.1, seed=42)
    assert 850 < sum(out) < 1150
    sides = [
        {name for name, is_out in zip(names, out, strict=True) if is_out is side} for side in (True, False)
    ]
    assert sides[0] & sides[1] == {None}  # texts are drawn one by one
    assert out == held(names, fraction=0.1, seed=42)
    assert out != held(names, fraction=0.1, seed=43)
    # Whatever else there is, and with more held out.
    more = held([*names[:5000], "other.jpg"], fraction=0.2, seed=42)
    assert all(now for was, now in zip(out, more[:5000], strict=False) if was)
    assert sum(more) > 1.5 * sum(out[:5000])
    same = [is_held_out(name, 1, fraction=0.5, seed=3) for name in ("./a.jpg", "a.jpg")]
    assert same[0] == same[1]


def test_none_or_all_may_be_held_out() -> None:
    assert held(["a.jpg", None], fraction=0.0, seed=0) == [False, False]
    assert held([None, None], fraction=1.0, seed=0) == [True, True]


# ---- in a run


def write_data(golden: Path, path: Path) -> Path:
    """Golden records of all forms, some with a question type, and one with nothing to learn."""
    rows = json.loads((golden / "train_data/train.json").read_text())
    for place, row in enumerate(rows):
        if "image" not in row:
            continue
        if place % 3:
            row["conversations"][0]["value"] += f"\n{(LETTER_SUFFIX, SHORT_SUFFIX)[place % 2]}"
        if place % 4 == 0:
            row["type"] = ("Instance Location", "Text Understanding")[place % 8 // 4]
    turns = [{"from": "human", "value": "<image>\nWhy?"}, {"from": "gpt", "value": ""}]
    rows.append({"id": "mute", "image": "a_640x480.png", "conversations": turns})
    rows.append({**rows[3], "id": "t7"})  # of text alone, and held out like the one before
    path.write_text(json.dumps(rows))
    return path


def flags(golden: Path, data: Path, output: Path, *more: str) -> list[str]:
    recorded = json.loads((golden / "viii_lora.json").read_text())["argv"]
    validated = ["--evaluation_strategy", "steps", "--eval_steps", "2", "--eval_on_start", "True"]
    return [
        *recorded,
        "--data_path",
        str(data),
        "--output_dir",
        str(output),
        "--max_steps",
        "4",
        *validated,
        *more,
    ]


@dataclass(frozen=True)
class Run:
    """A run that validated, and with which flags."""

    trainer: LLaVATrainer
    argv: list[str]
    data: Path
    history: list[dict[str, Any]]

    @property
    def validations(self) -> list[dict[str, Any]]:
        return [entry for entry in self.history if "eval_loss" in entry]


@pytest.fixture(autouse=True)
def in_golden_folder(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded flags name files from there."""
    monkeypatch.chdir(golden)


@pytest.fixture(scope="module")
def made() -> dict[str, Run]:
    """Runs that several tests look at."""
    return {}


@pytest.fixture
def run(golden: Path, made: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a tenth of the images held out, and dropout."""
    if "held out" not in made:
        folder = tmp_path_factory.mktemp("validated")
        data = write_data(golden, folder / "data.json")
        more = ["--held_out", "0.1", "--lora_dropout", "0.3", "--report_to", "tensorboard"]
        argv = flags(golden, data, folder / "out", *more)
        trainer = fit(assemble(*parse_arguments(argv)))
        history = json.loads((folder / "out/trainer_state.json").read_text())["log_history"]
        made["held out"] = Run(trainer, argv, data, history)
    return made["held out"]


def direct_losses(trainer: LLaVATrainer) -> dict[str, float]:
    """Mean losses by kind from the logits of one sample after another."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    dataset = trainer.eval_dataset
    trainer.model.eval()
    for place, sample in enumerate(dataset.samples):
        batch = trainer.data_collator([dataset[place]])
        batch.pop(NOTES)
        spliced = trainer.model.get_base_model().splice_images(
            *(batch[name] for name in ("input_ids", "labels", "attention_mask", "images")),
            None,
            max_length=256,
        )
        with torch.no_grad():
            logits = trainer.model(**batch).logits[0, :-1]
        wanted = spliced.labels[0, 1:]
        chosen = wanted != -100
        said = logits[chosen].double().log_softmax(dim=1).gather(1, wanted[chosen][:, None])
        for name in ("loss", *(f"loss/{kind}" for kind in kinds(sample))):
            sums[name][0] -= float(said.sum())
            sums[name][1] += int(chosen.sum())
    return {f"eval_{name}": total / count for name, (total, count) in sums.items() if count}


@pytest.mark.slow
def test_validation_losses_are_means_over_all_supervised_positions(run: Run) -> None:
    direct = direct_losses(run.trainer)
    last = run.validations[-1]
    assert {name for name in last if "loss" in name} == set(direct)
    assert set(direct) > {
        "eval_loss",
        "eval_loss/letter",
        "eval_loss/text only",
        "eval_loss/Instance Location",
    }
    for name, loss in direct.items():
        assert last[name] == pytest.approx(loss, rel=2e-6), name
    assert [entry["step"] for entry in run.validations] == [0, 2, 4]
    assert last["eval_loss"] < run.validations[0]["eval_loss"]


@pytest.mark.slow
def test_what_is_held_out_is_not_learned_from(run: Run) -> None:
    learned, held = (list(part.samples) for part in (run.trainer.train_dataset, run.trainer.eval_dataset))
    assert len(learned) + len(held) == len(json.loads(run.data.read_text()))
    assert not {sample.image for sample in learned} & {sample.image for sample in held} - {None}
    assert len(run.trainer.train_dataset.modality_lengths) == len(learned)
    again = assemble(*parse_arguments(run.argv))
    assert again.eval_dataset is not None
    assert [again.eval_dataset.samples[place] for place in range(len(held))] == held
    with raises_code("other-flags", SettingsError) as error:
        train(argv=[*run.argv, "--held_out", "0.5"])
    assert "held_out 0.1, now 0.5" in str(error.value)


@pytest.mark.slow
def test_two_processes_validate_as_one_does(run: Run, repo: Path, golden: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    assert len(run.trainer.eval_dataset) % 2 == 1  # one process has a sample less
    halved = [*run.argv, "--per_device_train_batch_size", "2", "--lora_dropout", "0", "--report_to", "none"]
    halved += ["--max_steps", "1", "--eval_steps", "1"]
    ways: dict[str, list[str]] = {"DDP": []}
    ways |= {f"ZeRO-{stage}": ["--deepspeed", str(repo / f"scripts/zero{stage}.json")] for stage in (2, 3)}
    # Saved after a validation, which gathers weights that the optimizer knows as shards.
    ways["FSDP"] = ["--fsdp", "True", "--save_strategy", "steps", "--save_steps", "1"]
    jobs = {way: [*halved, *more, "--output_dir", str(tmp_path / way)] for way, more in ways.items()}
    assert train_many(tmp_path, jobs, cwd=golden, processes=2) == {}
    losses = {name: value for name, value in run.validations[0].items() if "loss" in name}
    for way in ways:
        history = json.loads((tmp_path / way / "trainer_state.json").read_text())["log_history"]
        at_start = next(entry for entry in history if "eval_loss" in entry)
        assert {name: at_start[name] for name in losses} == pytest.approx(losses, rel=2e-6)
        step = next(entry for entry in history if "loss" in entry)
        assert set(step) > RATES


@pytest.mark.slow
def test_validation_changes_nothing_for_the_training(
    golden: Path, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    argv = flags(golden, run.data, tmp_path / "out", "--max_steps", "3", "--lora_dropout", "0.3")
    others = tmp_path / "others.json"
    others.write_text(json.dumps(json.loads(run.data.read_text())[:3]))
    ends = []
    for more in (
        ["--eval_data_path", str(others)],
        ["--evaluation_strategy", "no", "--eval_on_start", "False"],
    ):
        trainer = fit(assemble(*parse_arguments([*argv, *more, "--resume_from_checkpoint", "never"])))
        ends.append(
            {name: each.clone() for name, each in trainer.model.named_parameters() if each.requires_grad}
        )
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert "others.json: 3 of its 3 images are in" in caplog.text


@pytest.mark.slow
def test_a_run_logs_rates_beside_each_loss(run: Run) -> None:
    steps = [entry for entry in run.history if "loss" in entry]
    assert len(steps) == 4
    for entry in steps:
        assert set(entry) >= {"loss", "learning_rate", "grad_norm", "epoch", "step", "hours_left", *RATES}
        assert 0 < entry["supervised_tokens_per_second"] < entry["tokens_per_second"]
        assert 0 < entry["mfu"] < 1
    assert all(0 <= entry["hours_left"] < 1 for entry in steps)


@pytest.mark.slow
def test_tensorboard_has_what_the_log_has(run: Run) -> None:
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    file = next((run.data.parent / "out" / "runs").rglob("events.*"))
    events = tensorboard.EventAccumulator(str(file.parent))
    events.Reload()
    assert set(events.Tags()["scalars"]) > {f"train/{name}" for name in RATES} | {
        "eval/loss",
        "eval/loss/letter",
    }
    logged = [entry["eval_loss/letter"] for entry in run.validations]
    assert [event.value for event in events.Scalars("eval/loss/letter")] == pytest.approx(logged)


@pytest.mark.slow
def test_several_files_are_trained_and_validated_on_and_resumed(golden: Path, tmp_path: Path) -> None:
    rows = json.loads((golden / "train_data/train.json").read_text())
    names = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, some in zip(names, (rows[:30], rows[20:]), strict=True):
        path.write_text(json.dumps(some))
    argv = flags(golden, names[0], tmp_path / "out", "--held_out", "0.1", "--max_steps", "2")
    argv += ["--save_strategy", "steps", "--save_steps", "1", "--lora_dropout", "0.1"]
    weighed = ["--data_path", f"{names[0]}:2", f"{names[1]}:0.5"]
    trainer = fit(assemble(*parse_arguments([*argv, *weighed])))
    assert any("eval_loss" in entry for entry in trainer.state.log_history)

    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "out/checkpoint-1", cut / "checkpoint-1")
    with raises_code("other-flags"):
        train(argv=[*argv, "--output_dir", str(cut), *weighed[:2], str(names[1])])
    train(argv=[*argv, "--output_dir", str(cut), *weighed])
    assert equal_bits(cut, tmp_path / "out")


@pytest.mark.slow
def test_a_run_ends_with_its_best_weights_and_keeps_their_checkpoint(
    golden: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    argv = flags(golden, golden / "train_data/train.json", out, "--held_out", "0.1", "--max_steps", "3")
    argv += ["--load_best_model_at_end", "True", "--save_strategy", "steps", "--save_steps", "3"]
    argv += ["--eval_steps", "1", "--save_total_limit", "1", "--lora_dropout", "0.1"]
    argv += ["--learning_rate", "0.5", "--lr_scheduler_type", "constant", "--warmup_ratio", "0"]
    with caplog.at_level("INFO"):
        trainer = fit(assemble(*parse_arguments(argv)))
    history = [entry for entry in trainer.state.log_history if "eval_loss" in entry and entry["step"]]
    losses = {entry["step"]: entry["eval_loss"] for entry in history}
    best = min(losses, key=lambda step: losses[step])
    assert best < 3, "at this rate the loss no longer rises"
    kept = out / f"checkpoint-{best}"
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-6)
    assert f"the result has the weights of {kept}, whose loss is the lowest" in caplog.text
    assert {path.name for path in out.glob("checkpoint-*")} == {kept.name, "checkpoint-3"}
    for name in (kept.name, "checkpoint-3"):
        state = read_state(out / name / STATE_FILE)
        assert state is not None
        assert (state["best_global_step"], state["best_model_checkpoint"]) == (best, None)

    cut = tmp_path / "cut"
    shutil.copytree(kept, cut / kept.name)
    train(argv=[*argv, "--output_dir", str(cut)])
    assert equal_bits(cut, out)

    # One that is damaged is not loaded; one that is gone, or could not be written, is forgotten.
    (kept / "adapter_model.safetensors").write_bytes(b"damaged")
    trainer._load_best_model()
    assert f"{kept / 'adapter_model.safetensors'}: " in caplog.text
    assert "the result has the last step's weights instead" in caplog.text
    shutil.rmtree(kept)
    trainer._init_training_state(3, 3, 1, str(out / "checkpoint-3"), None)
    assert f"{kept}: is gone" in caplog.text
    assert trainer.state.best_global_step is None
    trainer.state.best_metric = losses[3]
    trainer._determine_best_metric({"eval_loss": losses[best]}, None)
    with monkeypatch.context() as patch:
        patch.setattr("llava.train.checkpointing.checkpoints.write_checksums", full_disk)
        trainer._save_checkpoint(trainer.model, None)
    assert (trainer.state.best_global_step, trainer.state.best_metric) == (None, losses[3])


def full_disk(folder: Path) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.slow
def test_a_loss_that_the_validation_does_not_have_is_refused(golden: Path, tmp_path: Path) -> None:
    argv = flags(golden, golden / "train_data/train.json", tmp_path, "--held_out", "0.1")
    argv += ["--metric_for_best_model", "eval_loss/none"]
    with raises_code("unknown-metric") as error:
        fit(assemble(*parse_arguments(argv)))
    assert "eval_loss, eval_loss/conversation" in str(error.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--held_out", "1.5"], "--held_out 1.5: wanted a part of the images, from 0 to less than 1"),
        (["--held_out", "0.1", "--eval_data_path", "train_data/train.json"], "choose one"),
        ([], "--evaluation_strategy steps: there is no data to evaluate on; use no, or give --held_out"),
        (["--held_out", "0.1", "--evaluation_strategy", "no"], "evaluation_strategy no: never looked at"),
        (["--eval_data_path", "none.json"], "--eval_data_path none.json: no such file"),
        (["--held_out", "0.1", "--load_best_model_at_end", "True", "--save_strategy", "epoch"], "to match"),
        (["--held_out", "0.1", "--greater_is_better", "True"], "every metric here is a loss"),
        (["--held_out", "0.1", "--save_strategy", "best"], "--save_strategy best: use steps or epoch"),
        (
            ["--load_best_model_at_end", "True", "--evaluation_strategy", "no", "--save_strategy", "no"],
            "--load_best_model_at_end True without --evaluation_strategy",
        ),
    ],
)
def test_contradictions_about_validation_are_refused(
    golden: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_arguments(flags(golden, golden / "train_data/train.json", tmp_path, *more))


def test_a_part_too_small_to_hold_anything_is_refused(golden: Path, tmp_path: Path) -> None:
    argv = flags(golden, golden / "train_data/train.json", tmp_path, "--held_out", "1e-9")
    with raises_code("empty-split") as error:
        assemble(*parse_arguments(argv))
    assert "--held_out 1e-09 leaves 48 samples" in str(error.value)
