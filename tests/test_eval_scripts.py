"""The evaluation scripts as users run them: real processes, tiny weights, lost shards, second attempts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_model import said_alone, tiny_model

from llava.files import read_json, read_jsonl, write_json, write_jsonl

IMAGES = ("a_640x480.png", "b_333x500.png", "c_100x37.png")
SUFFIX = "Answer with the option's letter from the given choices directly."
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: "
)


def seed_bench(root: Path, golden: Path, total: int) -> None:
    """A made-up SEED-Bench of `total` image questions under `root`."""
    folder = root / "seed_bench"
    (folder / "SEED-Bench-image").mkdir(parents=True)
    for name in IMAGES:
        shutil.copy(golden / "images" / name, folder / "SEED-Bench-image" / Path(name).stem)
    questions = [
        {
            **{f"choice_{letter}": f"option {letter}" for letter in "abcd"},
            "question_id": str(100 + number),
            "question_type_id": 1 + number % 2,
            "data_type": "image",
            "data_id": Path(IMAGES[number % 3]).stem,
            "question": f"What is thing {number}?",
            "answer": "ABCD"[number % 4],
        }
        for number in range(total)
    ]
    types = {"Scene Understanding": 1, "Instance Identity": 2}
    write_json(folder / "SEED-Bench.json", {"questions": questions, "question_type": types})


def started(repo: Path, script: str, *arguments: str | Path, **settings: str) -> subprocess.Popen[str]:
    """The script, begun; `settings` are environment variables."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CUDA_VISIBLE_DEVICES", "MODEL_BASE", "SHARDS")
    }
    environment |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **settings}
    command = ["bash", str(repo / "scripts/v1_5/eval" / script), *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=repo
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=120)
    return process.returncode, out, error


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)]


def child_of(process: subprocess.Popen[str], chunk: str) -> int:
    """The pid of the script's process for the chunk called `chunk`."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_text()
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        if parent == process.pid and f"/{chunk}.jsonl" in line:
            return int(folder.name)
    raise AssertionError(f"no process answers chunk {chunk}")


def wait_until(holds: Any, process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if holds():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("nothing happened within a minute")


@pytest.mark.slow
def test_a_killed_shard_fails_the_script_and_a_rerun_asks_only_the_rest(
    repo: Path, golden: Path, tmp_path: Path
) -> None:
    seed_bench(tmp_path, golden, total=40)
    model = golden / "weights/tiny-pretrain"
    settings = {
        "EVAL_ROOT": str(tmp_path),
        "MODEL_BASE": str(golden / "weights/tiny-vicuna-v1.5"),
        "ANSWER_FLAGS": "--max_new_tokens 48 --batch-size 1",
    }
    answers = tmp_path / "seed_bench/answers/tiny"
    first = started(repo, "seed.sh", model, "tiny", SHARDS="2", **settings)
    journal = answers / "journal/2_1.jsonl"
    wait_until(lambda: journal.is_file() and journal.read_bytes().count(b"\n") >= 3, first)
    os.kill(child_of(first, "2_1"), signal.SIGKILL)
    code, _, error = finished(first)
    assert code == 1
    assert "shard 1 of 2 was killed by signal 9 (KILL); nothing was merged or scored" in error
    left = {path.name for path in answers.iterdir()}
    assert left == {"2_0.jsonl", "journal"}

    # The killed process's last line is torn, as a full disk or a lost machine leaves it.
    kept = journal.read_bytes().count(b"\n")
    journal.write_bytes(journal.read_bytes() + b'{"position": 39, "row": {"te')
    code, out, error = finished(started(repo, "seed.sh", model, "tiny", SHARDS="1", **settings))
    assert code == 0, error
    assert f"{20 + kept} have their answer from before" in error
    assert f"{20 - kept} to ask" in error
    rows = rows_of(answers / "merge.jsonl")
    assert [row["question_id"] for row in rows] == list(range(100, 140))
    loaded = tiny_model(golden)
    for number in (0, 21, 39):
        prompt = f"{SYSTEM}<image>\n{rows[number]['prompt']} ASSISTANT:"
        image = golden / "images" / IMAGES[number % 3]
        assert rows[number]["text"] == said_alone(loaded, prompt, image, max_new_tokens=48)
    assert "Scene Understanding" in out
    assert read_json(answers / "metrics.json")
    upload = rows_of(tmp_path / "seed_bench/answers_upload/tiny.jsonl")
    assert [row["prediction"] for row in upload] == [row["text"] for row in rows]

    # The same name for another model: refused, and nothing of the earlier run is touched.
    other = started(
        repo, "seed.sh", golden / "viii_lora", "tiny", SHARDS="1", **{**settings, "OVERWRITE": ""}
    )
    code, _, error = finished(other)
    assert code == 1
    assert "another run: model was 'tiny-pretrain', is 'viii_lora'" in error
    assert "shard 0 of 1 exited with 2" in error
    assert len(rows_of(answers / "journal/1_0.jsonl")) == 20 - kept


@pytest.mark.slow
def test_an_adapter_is_asked_by_more_shards_than_questions(repo: Path, golden: Path, tmp_path: Path) -> None:
    seed_bench(tmp_path, golden, total=2)
    settings = {
        "EVAL_ROOT": str(tmp_path),
        "MODEL_BASE": str(golden / "weights/tiny-vicuna-v1.5"),
        "ANSWER_FLAGS": "--max_new_tokens 12",
        "SHARDS": "3",
    }
    process = started(repo, "seed_lora.sh", golden / "viii_lora", "lora", **settings)
    code, _, error = finished(process)
    assert code == 0, error
    rows = rows_of(tmp_path / "seed_bench/answers/lora/merge.jsonl")
    assert (tmp_path / "seed_bench/answers/lora/3_2.jsonl").read_text() == ""
    loaded = tiny_model(golden, adapter=True)
    for number, row in enumerate(rows):
        prompt = (
            f"{SYSTEM}<image>\nWhat is thing {number}?\nA. option a\nB. option b\nC. option c\nD. option d\n"
        )
        image = golden / "images" / IMAGES[number]
        said = said_alone(loaded, f"{prompt}{SUFFIX} ASSISTANT:", image, max_new_tokens=12)
        assert (row["text"], row["model_id"]) == (said, "viii_lora")
    assert len(rows) == 2


def sleeping(process: subprocess.Popen[str]) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process.pid), "sleep"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def test_an_interrupted_script_leaves_no_process(repo: Path, golden: Path, tmp_path: Path) -> None:
    seed_bench(tmp_path, golden, total=2)
    python = tmp_path / "python"
    asleep = '[ "$2" = llava.eval.model_vqa_loader ] && exec sleep 300'
    python.write_text(f'#!/bin/sh\n{asleep}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    process = started(
        repo, "seed.sh", "model", "tiny", EVAL_ROOT=str(tmp_path), SHARDS="2", PYTHON=str(python)
    )
    wait_until(lambda: len(sleeping(process)) == 2, process)
    pids = sleeping(process)
    process.send_signal(signal.SIGINT)
    code, _, _ = finished(process)
    assert code == 130
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


# Stands in for python: answering commands get canned replies, so that no model is needed; all else is real.
CANNED = """
import runpy, sys, types
from llava.infer import run
from llava.infer.requests import Reply

sys.modules["llava.infer.load"] = types.SimpleNamespace(settle=lambda choice, local_rank: choice)
run._replies = lambda run, asks, positions, conversation: ((place, Reply("A")) for place in positions)
module = sys.argv[2]
sys.argv = [module, *sys.argv[3:]]
runpy.run_module(module, run_name="__main__")
"""


def write_benchmark(script: str, root: Path) -> None:
    """The smallest download of one benchmark that its script needs, two questions about one image."""
    questions = [
        {"question_id": n, "image": "x.jpg", "text": f"Is it {n}?", "category": "default"} for n in (1, 2)
    ]
    gqa = {"isBalanced": True, "answer": "a", "question": "?", "imageId": "x", "semantic": [], "entailed": []}
    gqa |= {"types": {"structural": "query", "semantic": "obj", "detailed": "x"}, "groups": {"global": None}}
    said = [{"from": "human", "value": "Why?\nA. x\nB. y"}, {"from": "gpt", "value": "A"}]
    problem = {
        "question": "Why?",
        "choices": ["x", "y"],
        "answer": 0,
        "hint": "",
        "image": None,
        "split": "test",
    }
    problem |= {"subject": "natural science", "grade": "grade2", "topic": "biology"}
    files: dict[str, Any] = {
        "gqa": {
            "llava_gqa_testdev_balanced.jsonl": [
                {**row, "question_id": str(row["question_id"])} for row in questions
            ],
            "data/testdev_balanced_questions.json": {"1": gqa, "2": gqa},
            "data/images/x.jpg": None,
        },
        "vqav2": {
            "llava_vqav2_mscoco_test-dev2015.jsonl": questions[:1],
            "llava_vqav2_mscoco_test2015.jsonl": questions,
            "test2015/x.jpg": None,
        },
        "mme": {
            "llava_mme.jsonl": [
                {**row, "question_id": "count/x.jpg", "image": "count/x.jpg", "text": f"Is {n}?\n{SHORT}"}
                for n, row in enumerate(questions)
            ],
            "MME_Benchmark_release_version/count/x.txt": "Is 0? Please answer yes or no.\tYes\n"
            "Is 1? Please answer yes or no.\tNo\n",
            "MME_Benchmark_release_version/count/x.jpg": None,
        },
        "sqa": {
            "llava_test_CQM-A.json": [{"id": "1", "conversations": said}, {"id": "2", "conversations": said}],
            "problems.json": {"1": problem, "2": problem},
            "pid_splits.json": {"test": ["1", "2"]},
        },
        "vizwiz": {"llava_test.jsonl": questions, "test/x.jpg": None},
        "textvqa": {
            "llava_textvqa_val_v051_ocr.jsonl": [
                {**row, "question_id": "x", "text": f"{row['text']}\nReference OCR token: \n{SHORT}"}
                for row in questions
            ],
            "TextVQA_0.5.1_val.json": {
                "data": [
                    {"image_id": "x", "question": row["text"], "question_id": 7, "answers": ["a"] * 10}
                    for row in questions
                ]
            },
            "train_images/x.jpg": None,
        },
        "pope": {
            "llava_pope_test.jsonl": [
                {"question_id": n, "image": "x.jpg", "text": f"Is there {n}?\n{SHORT}", "category": name}
                for n, name in enumerate(("adversarial", "random", "popular"))
            ],
            **{
                f"coco/coco_pope_{name}.json": [
                    {"question_id": 1, "image": "x.jpg", "text": f"Is there {n}?", "label": "yes"}
                ]
                for n, name in enumerate(("adversarial", "random", "popular"))
            },
            "val2014/x.jpg": None,
        },
        "mmbench": {"mmbench_dev_20230712.tsv": TSV},
        "mmbench_cn": {"mmbench_dev_cn_20231003.tsv": TSV},
        "mmvet": {"llava-mm-vet.jsonl": questions, "images/x.jpg": None},
        "llavabench": {"questions.jsonl": questions, "images/x.jpg": None},
    }
    for name, content in files[script].items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".json") and not name.startswith("coco/"):
            write_json(path, content)
        elif isinstance(content, list):
            write_jsonl(path, content)
        else:
            path.write_text(content or "")


TSV = (
    "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\tl2-category\timage\tsource\tcomment\tsplit\n"
    "1\tWhich?\t\tant\tbee\t\t\tA\tx\ty\taGk=\t\t\tdev\n"
    "1000001\tWhich?\t\tbee\tant\t\t\tB\tx\ty\taGk=\t\t\tdev\n"
)
SHORT = "Answer the question using a single word or phrase."
# Script, folder, what it must leave there.
LEFT = [
    (
        "gqa",
        "gqa",
        [
            f"answers/llava_gqa_testdev_balanced/7b/{name}"
            for name in ("merge.jsonl", "metrics.json", "testdev_balanced_predictions.json")
        ],
    ),
    (
        "vqav2",
        "vqav2",
        [
            "answers/llava_vqav2_mscoco_test-dev2015/7b/merge.jsonl",
            "answers_upload/llava_vqav2_mscoco_test-dev2015/7b.json",
        ],
    ),
    ("mme", "MME", ["answers/7b.jsonl", "answers/7b/metrics.json", "eval_tool/answers/7b/count.txt"]),
    (
        "sqa",
        "scienceqa",
        ["answers/7b.jsonl", "answers/7b_output.jsonl", "answers/7b_result.json", "answers/7b/metrics.json"],
    ),
    ("vizwiz", "vizwiz", ["answers/7b.jsonl", "answers_upload/7b.json"]),
    ("textvqa", "textvqa", ["answers/7b.jsonl", "answers/7b/metrics.json"]),
    ("pope", "pope", ["answers/7b.jsonl", "answers/7b/metrics.json"]),
    (
        "mmbench",
        "mmbench",
        [
            "answers/mmbench_dev_20230712/7b.jsonl",
            "answers/mmbench_dev_20230712/7b/metrics.json",
            "answers_upload/mmbench_dev_20230712/7b.xlsx",
        ],
    ),
    (
        "mmbench_cn",
        "mmbench_cn",
        [
            "answers/mmbench_dev_cn_20231003/7b.jsonl",
            "answers/mmbench_dev_cn_20231003/7b/metrics.json",
            "answers_upload/mmbench_dev_cn_20231003/7b.xlsx",
        ],
    ),
    ("mmvet", "mm-vet", ["answers/7b.jsonl", "results/7b.json"]),
    ("llavabench", "llava-bench-in-the-wild", ["answers/7b.jsonl"]),
]


@pytest.mark.parametrize(("script", "folder", "left"), LEFT, ids=[script for script, *_ in LEFT])
def test_every_script_leaves_what_it_says(
    repo: Path, tmp_path: Path, script: str, folder: str, left: list[str]
) -> None:
    write_benchmark(script, tmp_path / folder)
    (tmp_path / "canned.py").write_text(CANNED)
    python = tmp_path / "python"
    canned = f'exec {sys.executable} {tmp_path / "canned.py"} "$@"'
    python.write_text(f'#!/bin/sh\ncase "$2" in llava.eval.*) {canned};; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    settings = {"EVAL_ROOT": str(tmp_path), "SHARDS": "2", "PYTHON": str(python)}
    code, _, error = finished(started(repo, f"{script}.sh", "org/llava-v1.5-7b", "7b", **settings))
    assert code == 0, error
    assert [name for name in left if not (tmp_path / folder / name).is_file()] == []
