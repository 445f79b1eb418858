"""The original's converters and small evaluators: same flags, stdout and files as golden/xi_scripts."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pytest

from llava.benchmarks import scienceqa_formats
from llava.benchmarks.vqa_answers import normalise
from llava.errors import SettingsError
from llava.eval.m4c_evaluator import EvalAIAnswerProcessor, TextVQAAccuracyEvaluator
from support.errors import raises_code
from support.warm_python import warm_python

Run = Callable[..., subprocess.CompletedProcess[str]]
# What each run writes, and whose golden copy it must equal.
FILES = {
    "seed_v122": ["seed/upload_v122.jsonl"],
    "seed_dataengine": ["seed/upload_de.jsonl"],
    "sqa_eval": ["sqa/out.json", "sqa/result.json"],
    "sqa_convert_CQM-A": ["sqa/llava_test_CQM-A.json"],
    "sqa_convert_QCM-LEA": ["sqa/llava_test_QCM-LEA.json"],
    "sqa_convert_QCM-LEPA": ["sqa/llava_test_QCM-LEPA.json"],
    "sqa_jsonl": ["sqa/scienceqa_train_QCM-LEPA.jsonl"],
    "gqa": ["gen/gqa.json"],
    "mmvet": ["gen/mmvet.json"],
    "vqav2": ["vqav2/answers_upload/test/ck.json"],
    "vizwiz": ["vizwiz/up/out.json"],
    "pope": [],
    "textvqa": [],
}


@pytest.fixture
def workplace(golden: Path, tmp_path: Path) -> Path:
    """A copy of the golden inputs to run in, without the outputs."""
    copy = tmp_path / "xi"
    shutil.copytree(golden / "xi_scripts", copy, copy_function=shutil.copyfile)
    for folder in (path for path in [copy, *copy.rglob("*")] if path.is_dir()):
        folder.chmod(0o755)
    for name in (name for names in FILES.values() for name in names):
        (copy / name).unlink()
    return copy


@pytest.fixture
def run_script(repo: Path, workplace: Path) -> Run:
    def run(script: str, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [warm_python(), repo / script, *args], cwd=workplace, capture_output=True, text=True, check=False
        )

    return run


def recorded(golden: Path, name: str) -> dict[str, str]:
    runs = json.loads((golden / "xi_scripts" / "runs.json").read_text())
    return next(run for run in runs if run["name"] == name)


@pytest.mark.parametrize("name", FILES)
def test_output_is_the_originals(golden: Path, workplace: Path, run_script: Run, name: str) -> None:
    want = recorded(golden, name)
    result = run_script(want["script"], *want["args"])
    assert result.returncode == 0, result.stderr
    assert result.stdout == want["stdout"]
    for file in FILES[name]:
        assert (workplace / file).read_bytes() == (golden / "xi_scripts" / file).read_bytes()


def test_mmbench_upload_is_the_originals_cell_by_cell(golden: Path, workplace: Path, run_script: Run) -> None:
    want = recorded(golden, "mmbench")
    (workplace / "mmb/up/exp.xlsx").unlink()
    result = run_script(want["script"], *want["args"])
    assert result.returncode == 0, result.stderr
    assert "1 rows have no answer" in result.stderr
    assert cells(workplace / "mmb/up/exp.xlsx") == cells(golden / "xi_scripts/mmb/up/exp.xlsx")


def cells(path: Path) -> list[tuple[object, ...]]:
    return list(openpyxl.load_workbook(path).worksheets[0].iter_rows(values_only=True))


def test_seed_metrics_keep_types_total_and_image(golden: Path, workplace: Path, run_script: Run) -> None:
    want = recorded(golden, "seed_dataengine")
    run_script(want["script"], *want["args"])
    metrics = json.loads((workplace / "seed/de/metrics.json").read_text())
    assert metrics["image"] == 37.931  # all that the fork's file holds in the end
    assert metrics["total"] == 37.5
    assert metrics["Instance Location"] == 27.273
    assert len(metrics["verdicts"]) == 40


def test_seed_image_only_annotations_do_not_divide_by_zero(
    golden: Path, workplace: Path, run_script: Run
) -> None:
    want = recorded(golden, "seed_v122_noimgvideo_zerodiv")
    answers = (workplace / "seed/answers.jsonl").read_text().splitlines()
    images = {
        q["question_id"] for q in json.loads((workplace / "seed/SEED-img.json").read_text())["questions"]
    }
    kept = [line for line in answers if str(json.loads(line)["question_id"]) in images]
    (workplace / "seed/answers.jsonl").write_text("\n".join(kept) + "\n")
    result = run_script(want["script"], *want["args"])
    assert (result.returncode, result.stdout) == (0, want["stdout"])


def test_seed_answers_to_video_questions_that_are_not_annotated_are_left_out(
    golden: Path, workplace: Path, run_script: Run
) -> None:
    want = recorded(golden, "seed_dataengine")
    with (workplace / "seed/answers.jsonl").open("a") as stream:
        stream.write('{"question_id": "v777", "prompt": "", "text": "A"}\n')
    result = run_script(want["script"], *want["args"])
    assert (result.returncode, result.stdout) == (0, want["stdout"]), result.stderr
    (note,) = json.loads((workplace / "seed/de/metrics.json").read_text())["notes"]
    assert note.startswith("1 answers to video questions")


def test_seed_missing_answers_are_named_and_nothing_is_written(
    golden: Path, workplace: Path, run_script: Run
) -> None:
    want = recorded(golden, "seed_de_missing")
    (workplace / "seed/upload_m.jsonl").unlink()
    result = run_script(want["script"], *want["args"])
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert all(fact in result.stderr for fact in ("seed", "3 of 40", "137, 138, 139", "--allow-missing"))
    assert not (workplace / "seed/upload_m.jsonl").exists()
    allowed = run_script(want["script"], *want["args"], "--allow-missing")
    assert (allowed.returncode, allowed.stdout) == (0, want["stdout"])


def test_a_hole_in_the_asked_vqav2_split_is_an_error(golden: Path, workplace: Path, run_script: Run) -> None:
    want = recorded(golden, "vqav2")
    shutil.copyfile(workplace / "vqav2/llava_vqav2_mscoco_test2015.jsonl", workplace / "vqav2/test.jsonl")
    result = run_script(want["script"], *want["args"])
    assert result.returncode == 2
    assert "test: 3 of 20 questions have no answer: 17, 18, 19" in result.stderr


def test_a_lost_pope_answer_is_an_error(golden: Path, workplace: Path, run_script: Run) -> None:
    want = recorded(golden, "pope")
    rows = (workplace / "pope/a.jsonl").read_text().splitlines(keepends=True)
    (workplace / "pope/a.jsonl").write_text("".join(rows[:-1]))
    result = run_script(want["script"], *want["args"])
    assert result.returncode == 2
    assert "pope: 1 of 40 questions have no answer: 39;" in result.stderr
    assert run_script(want["script"], *want["args"], "--allow-missing").returncode == 0


def test_a_pope_list_without_labels_is_left_out(golden: Path, workplace: Path, run_script: Run) -> None:
    want = recorded(golden, "pope")
    labels = sorted((workplace / "pope").rglob("coco_pope_*.json"))
    labels[0].unlink()
    result = run_script(want["script"], *want["args"])
    assert result.returncode == 0, result.stderr
    left_out = labels[0].stem.removeprefix("coco_pope_")
    assert f"questions are of lists without labels ({left_out}); they are left out" in result.stderr
    blocks = want["stdout"].split("Category: ")[1:]
    kept = [f"Category: {block}" for block in blocks if not block.startswith(left_out)]
    assert result.stdout == "".join(kept)
    assert len(blocks) - len(kept) == 1


def test_textvqa_scores_every_file_of_a_folder(golden: Path, workplace: Path, run_script: Run) -> None:
    shutil.copyfile(workplace / "textvqa/res.jsonl", workplace / "textvqa/also.jsonl")
    args = ["--annotation-file", "textvqa/ann.json", "--result-dir", "textvqa"]
    result = run_script("llava/eval/eval_textvqa.py", *args)
    want = recorded(golden, "textvqa")["stdout"]
    assert result.stdout == want.replace("res\n", "also\n") + "Skipping ann.json\n" + want


@pytest.mark.parametrize("call", [normalise, EvalAIAnswerProcessor()], ids=["function", "facade"])
def test_the_evalai_processor_is_the_originals(golden: Path, call: Callable[[str], str]) -> None:
    table = json.loads((golden / "xi_scripts" / "m4c.json").read_text())
    assert [call(text) for text in table["in"]] == table["out"]


def test_the_m4c_accuracy_leaves_one_human_out() -> None:
    humans = ["cat"] * 3 + ["dog"] * 2 + ["bird"] * 5
    evaluate = TextVQAAccuracyEvaluator().eval_pred_list
    entries = [{"pred_answer": word, "gt_answers": humans} for word in ("cat", "dog", "bird")]
    assert [evaluate([entry]) for entry in entries] == pytest.approx([0.9, 0.6, 1.0])


PROBLEM = {
    "question": "Q?", "choices": ["x", "y"], "answer": 1, "hint": "", "image": None,
    "lecture": "L", "solution": "S",
}  # fmt: skip


OPTIONS = "Options: (A) x (B) y"


@pytest.mark.parametrize(
    ("prompt_format", "after_context", "answered"),
    [
        ("QCML-A", f"{OPTIONS}\nBECAUSE: L", "The answer is B."),
        ("QCMLE-AL", f"{OPTIONS}\nBECAUSE: L S", "The answer is B. BECAUSE: S"),
        ("QCLM-AE", f"BECAUSE: L\n{OPTIONS}", "The answer is B. BECAUSE: L"),
        ("QCEM-ALE", f"BECAUSE: S\n{OPTIONS}", "The answer is B. BECAUSE: L S"),
        ("QCLEM-ELA", f"BECAUSE: L S\n{OPTIONS}", "S L The answer is B."),
    ],
)
def test_every_scienceqa_format_has_its_parts_in_order(
    tmp_path: Path, prompt_format: str, after_context: str, answered: str
) -> None:
    (tmp_path / "problems.json").write_text(json.dumps({"7": PROBLEM}))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["7"]}))
    (example,) = scienceqa_formats.read_examples(tmp_path, "test", prompt_format)
    assert example.input == f"Question: Q?\nContext: N/A\n{after_context}"
    assert example.output == f"Answer: {answered}"


def test_odd_scienceqa_texts_become_the_originals(tmp_path: Path) -> None:
    odd = {"hint": " \u00a0", "lecture": "a\\nb\n", "solution": " \\\\n"}
    (tmp_path / "problems.json").write_text(json.dumps({"7": PROBLEM | odd, "8": PROBLEM | {"hint": " x "}}))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["7", "8", "7"]}))
    first, second = scienceqa_formats.read_examples(tmp_path, "test", "QCM-LEA")
    assert first.input == f"Question: Q?\nContext: N/A\n{OPTIONS}"
    assert first.output == "Answer: a\nb\n \\\n The answer is B."
    assert second.input == f"Question: Q?\nContext: x\n{OPTIONS}"


def test_an_unknown_scienceqa_format_is_named(tmp_path: Path) -> None:
    with raises_code("unknown-prompt-format", SettingsError) as error:
        list(scienceqa_formats.read_examples(tmp_path, "test", "QCX-A"))
    assert "QCX-A" in str(error.value)
