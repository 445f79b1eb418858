"""The evaluation scripts as users run them: real processes, tiny weights, lost shards, second attempts."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llava import benchmarks
from llava.eval.__main__ import evaluate, parse_flags
from llava.eval.questions import sample_asks
from llava.files import read_json, read_jsonl, write_json
from llava.infer.jobs.run import Ask
from support.canned_answers import canned_python
from support.chat_server import ChatServer
from support.errors import raises_code
from support.tiny_benchmarks import write_benchmark
from support.tiny_model import generate_alone, tiny_model
from support.warm_python import warm_python

REPO = Path(__file__).resolve().parents[2]
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
    environment |= {"PYTHON": warm_python(), "OMP_NUM_THREADS": "1", **settings}
    command = ["bash", str(repo / "scripts/v1_5/eval" / script), *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=repo,
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=600)
    return process.returncode, out, error


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)]


def child_of(process: subprocess.Popen[str], index: int) -> int:
    """Return the pid of the script's process for shard `index`."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_text()
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        if parent == process.pid and line.endswith(f"--chunk-idx\0{index}\0"):
            return int(folder.name)
    raise AssertionError(f"no process answers shard {index}")


def wait_until(holds: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing happened within ten minutes"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_shard_fails_the_script_and_a_rerun_asks_only_the_rest(
    repo: Path, golden: Path, tmp_path: Path
) -> None:
    seed_bench(tmp_path, golden, total=24)
    model = golden / "weights/tiny-pretrain"
    settings = {
        "EVAL_ROOT": str(tmp_path),
        "MODEL_BASE": str(golden / "weights/tiny-vicuna-v1.5"),
        "ANSWER_FLAGS": "--max_new_tokens 50 --batch-size 1",
    }
    answers = tmp_path / "seed_bench/answers/tiny"
    first = started(repo, "seed.sh", model, "tiny", SHARDS="2", **settings)
    journal = answers / "journal/2_1.jsonl"
    wait_until(lambda: journal.is_file() and journal.read_bytes().count(b"\n") >= 3, first)
    os.kill(child_of(first, 1), signal.SIGKILL)
    code, _, error = finished(first)
    assert code == 1
    assert "shard 1 of 2 was killed by signal 9 (KILL); nothing was merged or scored" in error
    left = {path.name for path in answers.iterdir()}
    assert left == {"2_0.jsonl", "journal"}

    # The killed process's last line is torn, as a full disk or a lost machine leaves it.
    kept = journal.read_bytes().count(b"\n")
    journal.write_bytes(journal.read_bytes() + b'{"position": 23, "row": {"te')
    code, out, error = finished(started(repo, "seed.sh", model, "tiny", SHARDS="1", **settings))
    assert code == 0, error
    assert f"{12 + kept} have their answer from before" in error
    assert f"{12 - kept} to ask" in error
    rows = rows_of(answers / "merge.jsonl")
    assert [row["question_id"] for row in rows] == list(range(100, 124))
    loaded = tiny_model(golden)
    for number in (0, 13, 23):
        prompt = f"{SYSTEM}<image>\n{rows[number]['prompt']} ASSISTANT:"
        image = golden / "images" / IMAGES[number % 3]
        assert rows[number]["text"] == generate_alone(loaded, prompt, image, max_new_tokens=50)
    assert "Scene Understanding" in out
    assert read_json(answers / "metrics.json")
    upload = rows_of(tmp_path / "seed_bench/answers_upload/tiny.jsonl")
    assert [row["prediction"] for row in upload] == [row["text"] for row in rows]


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
        said = generate_alone(loaded, f"{prompt}{SUFFIX} ASSISTANT:", image, max_new_tokens=12)
        assert (row["text"], row["model_id"]) == (said, "viii_lora")
    assert len(rows) == 2


def sleeping(process: subprocess.Popen[str]) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process.pid), "sleep"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def test_an_interrupted_script_leaves_no_process(repo: Path, golden: Path, tmp_path: Path) -> None:
    seed_bench(tmp_path, golden, total=2)
    python = tmp_path / "python"
    asleep = 'case "$*" in *"--steps answer"*) exec sleep 300;; esac'
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


def canned(folder: Path) -> dict[str, str]:
    """Settings under which two shards give canned answers to what lies under `folder`."""
    return {"EVAL_ROOT": str(folder), "SHARDS": "2", "PYTHON": str(canned_python(folder))}


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
    ("llavabench", "llava-bench-in-the-wild", ["answers/7b.jsonl", "judge_input/7b.jsonl"]),
]


@pytest.mark.parametrize(("script", "folder", "left"), LEFT, ids=[script for script, *_ in LEFT])
def test_every_script_leaves_what_it_says(
    repo: Path, tmp_path: Path, script: str, folder: str, left: list[str]
) -> None:
    write_benchmark(script, tmp_path / folder)
    settings = canned(tmp_path)
    code, _, error = finished(started(repo, f"{script}.sh", "org/llava-v1.5-7b", "7b", **settings))
    assert code == 0, error
    assert [name for name in left if not (tmp_path / folder / name).is_file()] == []

    # Another model under the same name, of which a shard is lost: nothing may be left that the old one said.
    settings |= {"OVERWRITE": "1", "CANNED_FAILS": "1"}
    code, _, error = finished(started(repo, f"{script}.sh", "org/llava-v1.5-13b", "7b", **settings))
    assert code == 1
    assert "nothing was merged or scored" in error
    assert [name for name in left if (tmp_path / folder / name).is_file()] == []


SPLITS = [
    (
        "vqav2",
        {"VQAV2_SPLIT": "llava_vqav2_mscoco_val2014"},
        "answers/llava_vqav2_mscoco_val2014/7b",
        "answers_upload/llava_vqav2_mscoco_val2014/7b.json",
    ),
    ("vizwiz", {"VIZWIZ_SPLIT": "llava_val"}, "answers/llava_val/7b", "answers_upload/llava_val/7b.json"),
]


@pytest.mark.parametrize(("script", "setting", "scores", "upload"), SPLITS)
def test_a_split_whose_answers_are_public_is_scored(
    repo: Path, tmp_path: Path, script: str, setting: dict[str, str], scores: str, upload: str
) -> None:
    folder = tmp_path / script
    write_benchmark(script, folder)
    settings = canned(tmp_path) | setting
    code, out, error = finished(started(repo, f"{script}.sh", "org/llava-v1.5-7b", "7b", **settings))
    assert code == 0, error
    metrics = read_json(folder / scores / "metrics.json")
    assert {verdict["truth"] for verdict in metrics["verdicts"]} == {"a"}
    assert "overall" in out
    assert (folder / upload).is_file()


# Script, folder, the judge's file, and what it says of two answers.
JUDGED = [
    (
        "mmvet",
        "mm-vet",
        "results/7b_gpt-4-grade-1runs.json",
        '{"v1_1": {"score": [1.0]}, "v1_2": {"score": [0.5]}}',
    ),
    (
        "llavabench",
        "llava-bench-in-the-wild",
        "reviews/7b.jsonl",
        "".join(
            f'{{"question_id": {n}, "category": "llava_bench_conv", "tuple": [8, {4 * n}]}}\n' for n in (1, 2)
        ),
    ),
]


@pytest.mark.parametrize(("script", "folder", "file", "content"), JUDGED)
def test_what_the_judge_said_of_these_answers_is_scored_and_of_others_not(
    repo: Path, tmp_path: Path, script: str, folder: str, file: str, content: str
) -> None:
    write_benchmark(script, tmp_path / folder)
    grades, metrics = tmp_path / folder / file, tmp_path / folder / "answers/7b/metrics.json"
    grades.parent.mkdir(parents=True, exist_ok=True)
    grades.write_text(content)
    os.utime(grades, (1, 1))
    settings = canned(tmp_path)
    code, _, error = finished(started(repo, f"{script}.sh", "org/llava-v1.5-7b", "7b", **settings))
    assert code == 0, error
    assert f"left out: {grades} is older than the answers" in error
    assert not metrics.exists()

    os.utime(grades)
    code, _, error = finished(started(repo, f"{script}.sh", "org/llava-v1.5-7b", "7b", **settings))
    assert code == 0, error
    (total,) = (score["value"] for score in read_json(metrics)["scores"] if score["group"] == "total")
    assert total == 75.0


def test_a_judge_that_the_settings_name_grades_the_answers(repo: Path, tmp_path: Path) -> None:
    write_benchmark("mmvet", tmp_path / "mm-vet")
    with ChatServer(answer=lambda body: "0.5") as server:
        judge = {"OPENAI_BASE_URL": server.url, "JUDGE_MODEL": "j", "JUDGE_FLAGS": "--runs 2"}
        code, _, error = finished(started(repo, "mmvet.sh", "org/7b", **judge, **canned(tmp_path)))
    assert code == 0, error
    metrics = read_json(tmp_path / "mm-vet/answers/7b/metrics.json")
    assert metrics["judge"] == "j (llava's prompt)"
    assert {score["value"] for score in metrics["scores"] if score["group"] in ("total", "run")} == {50.0}


def test_llava_bench_without_what_its_judge_is_told_is_not_asked(repo: Path, tmp_path: Path) -> None:
    write_benchmark("llavabench", tmp_path / "llava-bench-in-the-wild")
    (tmp_path / "llava-bench-in-the-wild/rule.json").unlink()
    settings = canned(tmp_path)
    code, _, error = finished(started(repo, "llavabench.sh", "org/llava-v1.5-7b", "7b", **settings))
    assert code == 2
    assert "lacks rule.json; get it from " in error
    assert not (tmp_path / "llava-bench-in-the-wild/answers").exists()


# Notes which device, threads and flags an answering process got, and fails as a broken machine would.
NOTING = """
case "$*" in *"--steps answer"*)
    printf '%s|%s|%s\\n' "${CUDA_VISIBLE_DEVICES-unset}" "$OMP_NUM_THREADS" "$*" >>"$NOTES"
    exit 3
esac
"""


@pytest.mark.parametrize(
    ("settings", "devices"),
    [
        ({}, ["0"]),
        ({"CUDA_VISIBLE_DEVICES": "2,5"}, ["2", "5"]),
        ({"CUDA_VISIBLE_DEVICES": "2,5", "SHARDS": "3"}, ["2", "5", "2"]),
        ({"CUDA_VISIBLE_DEVICES": "", "SHARDS": "2"}, ["", ""]),
        ({"CUDA_VISIBLE_DEVICES": ""}, [""]),
        ({"CUDA_VISIBLE_DEVICES": "2,5", "WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}, ["5"]),
    ],
)
def test_each_process_gets_its_device_and_chunk(
    repo: Path, tmp_path: Path, settings: dict[str, str], devices: list[str]
) -> None:
    notes, python = tmp_path / "notes", tmp_path / "python"
    python.write_text(f'#!/bin/sh\n{NOTING}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    write_benchmark("mmvet", tmp_path / "mm-vet")
    settings = {"EVAL_ROOT": str(tmp_path), "NOTES": str(notes), "PYTHON": str(python), **settings}
    code, _, error = finished(started(repo, "mmvet.sh", "org/7b/", **settings))
    assert code == 1
    assert "exited with 3, see its message above" in error
    assert not (tmp_path / "mm-vet/answers/7b.jsonl").exists()
    got = sorted(line.split("|") for line in notes.read_text().splitlines())
    assert sorted(device for device, _, _ in got) == sorted(devices)
    count, ranks = (4, [3]) if "RANK" in settings else (len(devices), list(range(len(devices))))
    wanted = {f"--steps answer --num-chunks {count} --chunk-idx {rank}" for rank in ranks}
    assert all("eval mmvet --model-path=org/7b/ " in flags for _, _, flags in got)
    assert {flags[flags.index("--steps") :] for _, _, flags in got} == wanted


# Prints what an answering process is handed, and fails.
ECHOING = """#!/bin/sh
printf '%s\\n' "$@" >&2
exit 2
"""


@pytest.mark.parametrize(
    ("settings", "flags"),
    [({}, []), ({"MODEL_BASE": ""}, []), ({"MODEL_BASE": "my base"}, ["--model-base=my base"])],
)
@pytest.mark.parametrize("script", ["seed", "mmbench", "mme", "gqa", "sqa", "vqav2", "vizwiz", "all"])
def test_a_lora_script_takes_the_base_that_the_adapter_names_unless_told_another(
    repo: Path, tmp_path: Path, script: str, settings: dict[str, str], flags: list[str]
) -> None:
    python = tmp_path / "python"
    python.write_text(ECHOING)
    python.chmod(0o755)
    settings = {"EVAL_ROOT": "-ev", "PYTHON": str(python), **settings}
    code, _, error = finished(started(repo, f"{script}_lora.sh", "path", "my name", **settings))
    assert code == 2
    name = ["-m", "llava.eval", script, "--model-path=path", "--name=my name"]
    assert error.splitlines() == [*name, *flags, "--eval-root=-ev", "--steps", "prepare"]


SCRIPTS = sorted(
    str(path.relative_to(REPO))
    for folder in ("scripts", "playground/demo")
    for path in (REPO / folder).rglob("*.sh")
)


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_prints_its_header_and_does_nothing(
    repo: Path, tmp_path: Path, script: str, flag: str
) -> None:
    relative = os.path.relpath(repo / script, tmp_path)
    environment = {"PATH": os.environ["PATH"]}
    result = subprocess.run(
        ["bash", relative, flag], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == (repo / script).read_text().splitlines()[1].removeprefix("# ")
    assert "SBATCH" not in result.stdout
    assert list(tmp_path.iterdir()) == []


NEEDS_ARGUMENTS = [
    *((script, [], {}) for script in SCRIPTS if script.endswith("_lora.sh") and "eval" in script),
    *((script, ["path"], {}) for script in SCRIPTS if script.endswith("_lora.sh") and "eval" in script),
    ("scripts/v1_5/eval/all.sh", [], {}),
    ("scripts/v1_5/eval/all.sh", ["path"], {}),
    ("scripts/v1_5/eval/seed.sh", ["path", "name", "more"], {}),
    ("scripts/v1_5/eval/seed.sh", [""], {}),
    ("scripts/v1_5/eval/seed.sh", ["--batch-size", "8"], {}),
    *(("scripts/v1_5/eval/seed.sh", ["m"], {"SHARDS": n}) for n in ("abc", "-1", "1.5", "0", "1e3", "2;ls")),
    *(("scripts/v1_5/eval/seed.sh", ["m"], {"OVERWRITE": n}) for n in ("yes", "2", "-1", "no")),
    ("scripts/v1_5/eval/seed.sh", ["m"], {"PYTHON": "no-such-python"}),
    *(("scripts/v1_5/eval/seed.sh", ["m", n], {}) for n in ("../../evil", "/tmp/evil", "", "-n")),
    ("scripts/v1_5/finetune.sh", [], {"PYTHON": "no-such-python"}),
    ("scripts/v1_5/slurm.sh", [], {}),
    ("scripts/v1_5/slurm.sh", ["gone.sh"], {}),
    ("scripts/v1_5/slurm.sh", ["scripts/v1_5/finetune.sh"], {}),
    ("scripts/quickstart.sh", ["fast"], {}),
    ("scripts/quickstart.sh", [], {"SHARDS": "abc"}),
    ("playground/demo/control.sh", ["fast"], {}),
    ("playground/demo/recipe.sh", ["fast"], {}),
    ("playground/demo/rounds.sh", ["fast"], {}),
    ("scripts/v1_5/dataengine_round.sh", ["1"], {}),
    ("scripts/v1_5/dataengine_round.sh", [], {"ROUNDS": "two"}),
]


@pytest.mark.parametrize(("script", "arguments", "settings"), NEEDS_ARGUMENTS)
def test_wrong_arguments_and_settings_are_refused_in_one_line(
    repo: Path, tmp_path: Path, script: str, arguments: list[str], settings: dict[str, str]
) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHON": warm_python(),
        "PYTHONPATH": str(repo),
        "EVAL_ROOT": str(tmp_path),
    }
    command = ["bash", script, *arguments]
    result = subprocess.run(
        command, cwd=repo, env=environment | settings, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2, result.stderr
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)
    assert result.stderr.startswith("error: ")
    assert not re.search(r"line \d+:", result.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flags",
    [
        *([f"--name={name}"] for name in ("..", ".", "a/../b", "a//b", "a/", "a\nb", "a" * 300, "")),
        *([f"--model-path={path}"] for path in ("/", "..", ".", "m/..")),
    ],
)
def test_a_name_that_is_none_for_a_file_is_refused(flags: list[str]) -> None:
    with raises_code("bad-name"):
        parse_flags(["seed", "--model-path=m", *flags])


@pytest.mark.parametrize("name", ["llava-v1.5-7b", "runs/7b", "7b, second try", "图", "..a"])
def test_any_other_name_is_taken(name: str) -> None:
    assert parse_flags(["seed", "--model-path=m", f"--name={name}"]).name == name


@pytest.mark.parametrize(("overwrite", "is_kept"), [("0", True), ("", True), ("1", False)])
def test_only_overwrite_1_discards_answers(repo: Path, tmp_path: Path, overwrite: str, is_kept: bool) -> None:
    write_benchmark("mme", tmp_path / "MME")
    settings = canned(tmp_path)
    assert finished(started(repo, "mme.sh", "org/7b", **settings))[0] == 0
    code, _, error = finished(started(repo, "mme.sh", "org/7b", **settings, OVERWRITE=overwrite))
    assert code == 0, error
    assert ("have their answer from before" in error) == is_kept


def test_a_limited_script_keeps_groups_whole_and_sends_nothing_in(repo: Path, tmp_path: Path) -> None:
    write_benchmark("mme", tmp_path / "MME")
    code, output, error = finished(started(repo, "mme.sh", "org/7b", **canned(tmp_path), LIMIT="1"))
    assert code == 0, error
    counts = read_json(tmp_path / "MME/answers/7b-limit1/metrics.json")["counts"]
    assert counts["questions"] == 2  # both about the image
    assert "2 of 2374" in output
    assert "7b-limit1" in output
    assert not (tmp_path / "MME/eval_tool").exists()


def test_a_sample_is_the_same_for_all_and_part_of_a_larger_one(tmp_path: Path) -> None:
    ids = [str(number % 50 + 1_000_000 * (number // 50)) for number in range(200)]
    asks = [Ask({"question_id": identifier, "prompt": "?"}, "?") for identifier in ids]

    def sample(limit: int, benchmark: str = "mmbench") -> list[str]:
        target = benchmarks.evaluation_of(benchmark, None, tmp_path, "7b", limit)
        return [ask.head["question_id"] for ask in sample_asks(asks, target)]

    small, large = sample(10), sample(50)
    assert len(small) == 12  # 3 questions with their 4 rotations
    assert {int(identifier) % 1_000_000 for identifier in small} <= {int(i) % 1_000_000 for i in large}
    assert len({int(identifier) % 1_000_000 for identifier in small}) == 3
    assert large == sorted(large, key=ids.index)
    assert len(sample(10, "seed")) == 10
    assert sample(1000) == ids
    with raises_code("out-of-range"):
        parse_flags(["seed", "--model-path=m", "--limit=0"])


def mme(root: Path, golden: Path) -> None:
    """Two yes/no questions about one image of one subtask."""
    folder = root / "MME/MME_Benchmark_release_version/count"
    folder.mkdir(parents=True)
    shutil.copy(golden / "images" / IMAGES[0], folder / "x.png")
    lines = [f"Is it {n}? Please answer yes or no.\t{said}\n" for n, said in enumerate(("Yes", "No"))]
    (folder / "x.txt").write_text("".join(lines))


def test_python_gets_the_scores(golden: Path, tmp_path: Path) -> None:
    mme(tmp_path, golden)
    model = ["--model-path", str(golden / "viii_lora")]
    model += ["--model-base", str(golden / "weights/tiny-vicuna-v1.5")]
    scored, failed = evaluate(["mme", *model, "--eval-root", str(tmp_path), "--max_new_tokens", "4"])
    assert failed == []
    (scores,) = scored
    assert len(scores.verdicts) == 2
    assert scores.headline in {score.name for score in scores.scores}

    # Again in a new process: nothing is left to ask, so torch is not imported.
    flags = ["mme", *model, "--eval-root", str(tmp_path), "--max_new_tokens", "4"]
    command = [sys.executable, "-X", "importtime", "-m", "llava.eval", *flags]
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in again.stderr.splitlines()}
    assert "llava.infer.jobs.journal" in imported
    assert not {"torch", "transformers", "numpy", "pandas"} & imported

    # The precision of the answers stands for this machine's, but not where a question is left.
    journal = tmp_path / "MME/answers/viii_lora/journal"
    record = read_json(journal / "run.json")
    record["about"]["dtype"] = "bfloat16"
    write_json(journal / "run.json", record)
    kept = (journal / "1_0.jsonl").read_text().splitlines(keepends=True)[0]
    (journal / "1_0.jsonl").write_text(kept)
    refused = subprocess.run([sys.executable, "-m", "llava.eval", *flags], capture_output=True, text=True)
    assert (refused.returncode, "dtype was 'bfloat16', is 'float32'" in refused.stderr) == (2, True)
    assert (journal / "1_0.jsonl").read_text() == kept


@pytest.mark.slow
def test_all_benchmarks_share_one_loading_and_end_in_the_papers_row(
    repo: Path, golden: Path, tmp_path: Path
) -> None:
    seed_bench(tmp_path, golden, total=3)
    mme(tmp_path, golden)
    settings = {
        "EVAL_ROOT": str(tmp_path),
        "MODEL_BASE": str(golden / "weights/tiny-vicuna-v1.5"),
        "SHARDS": "2",
        "ANSWER_FLAGS": "--max_new_tokens 8",
        "CUDA_VISIBLE_DEVICES": "",
    }
    code, out, error = finished(started(repo, "all_lora.sh", golden / "viii_lora", "lora", **settings))
    assert code == 0, error
    assert error.count(" loaded on ") == 2
    assert f"left out: gqa: {tmp_path}/gqa lacks " in error
    assert error.count("seed: 3 questions") == error.count("mme: 2 questions") == 2
    assert "merge.jsonl: 3 answers" in error
    scores = read_json(tmp_path / "seed_bench/answers/lora/metrics.json")
    seed = next(score["value"] for score in scores["scores"] if score["name"] == "image")
    rows = [re.split(" {2,}", line) for line in out.splitlines()]
    ours = next(row for row in rows if row[0] == "lora")
    assert ours[1].startswith(f"{seed:.2f} (3 of 14233)")
    assert [ours[2], *ours[-3:]] == ["-", "-", "-", "-/-"]
    assert sum(row[0].startswith("published: ") for row in rows) == 3
    before = (tmp_path / "MME/answers/lora.jsonl").read_text()

    # Again, with one benchmark named: nothing is left to ask, so nothing is loaded.
    code, out, error = finished(started(repo, "all_lora.sh", golden / "viii_lora", "lora", "mme", **settings))
    assert code == 0, error
    assert " loaded on " not in error
    assert (tmp_path / "MME/answers/lora.jsonl").read_text() == before


def test_a_missing_image_of_the_last_benchmark_is_known_before_the_first_answer(
    repo: Path, tmp_path: Path
) -> None:
    write_benchmark("textvqa", tmp_path / "textvqa")
    write_benchmark("pope", tmp_path / "pope")
    questions = tmp_path / "pope/llava_pope_test.jsonl"
    questions.write_text(questions.read_text().replace("x.jpg", "gone.jpg", 1))
    settings = canned(tmp_path)
    code, _, error = finished(started(repo, "all.sh", "org/7b", "7b", "textvqa", "pope", **settings))
    assert code == 2
    assert error.count("val2014/gone.jpg: no such image file") == 2
    assert not list(tmp_path.rglob("journal"))


def test_all_asks_the_splits_that_the_settings_name(repo: Path, tmp_path: Path) -> None:
    write_benchmark("vizwiz", tmp_path / "vizwiz")
    shutil.rmtree(tmp_path / "vizwiz/test")
    settings = canned(tmp_path) | {"VIZWIZ_SPLIT": "llava_val"}
    code, _, error = finished(started(repo, "all.sh", "org/7b", "7b", "vizwiz", **settings))
    assert code == 0, error
    assert read_json(tmp_path / "vizwiz/answers/llava_val/7b/metrics.json")


def test_a_benchmark_that_cannot_be_scored_does_not_cost_the_others_theirs(
    repo: Path, tmp_path: Path
) -> None:
    write_benchmark("pope", tmp_path / "pope")
    write_benchmark("mme", tmp_path / "MME")
    labels = tmp_path / "pope/coco/coco_pope_random.json"
    labels.write_text(labels.read_text() * 2)
    settings = canned(tmp_path)
    code, out, error = finished(started(repo, "all.sh", "org/7b", "7b", "pope", "mme", **settings))
    assert code == 1
    assert "error: POPE random: 1 questions but 2 labels" in error
    assert error.endswith("error: failed, see the message of each above: pope\n")
    assert read_json(tmp_path / "MME/answers/7b/metrics.json")
    assert [line.split()[0] for line in out.splitlines()].count("published:") == 3


def test_a_benchmark_that_is_named_must_have_its_data(repo: Path, tmp_path: Path) -> None:
    code, _, error = finished(started(repo, "all.sh", "path", "name", "gqa", EVAL_ROOT=str(tmp_path)))
    assert code == 2
    assert f"error: gqa: {tmp_path}/gqa lacks " in error
    assert "get it from https://cs.stanford.edu" in error


@pytest.mark.slow
def test_kills_at_random_moments_lose_and_double_nothing(repo: Path, golden: Path) -> None:
    model, base = str(golden / "weights/tiny-pretrain"), str(golden / "weights/tiny-vicuna-v1.5")
    # Seed 11 kills everything at once; that one lost shard loses nothing is the first test's.
    settings = ["--kills", "1", "--seed", "11", "--questions", "12"]
    settings += ["--model-path", model, "--model-base", base]
    command = [sys.executable, str(repo / "scripts/bench/kill_loop.py"), *settings]
    environment = os.environ | {"PYTHON": warm_python()}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("1 attempts: ")
    assert result.stdout.endswith("; 0 faults\n")


@pytest.mark.slow
def test_torchruns_processes_share_the_questions_and_the_first_merges(
    repo: Path, golden: Path, tmp_path: Path
) -> None:
    seed_bench(tmp_path, golden, total=5)
    environment = {name: value for name, value in os.environ.items() if name != "SHARDS"}
    environment |= {
        "EVAL_ROOT": str(tmp_path),
        "MODEL_BASE": str(golden / "weights/tiny-vicuna-v1.5"),
        "ANSWER_FLAGS": "--max_new_tokens 4",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHON": warm_python(),
        "OMP_NUM_THREADS": "1",
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = ["--no-python", "bash", str(repo / "scripts/v1_5/eval/seed.sh")]
    command = [*launcher, *script, str(golden / "weights/tiny-pretrain"), "tiny"]
    result = subprocess.run(command, env=environment, cwd=repo, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    answers = tmp_path / "seed_bench/answers/tiny"
    journal = {path.name: len(rows_of(path)) for path in (answers / "journal").glob("*_*.jsonl")}
    assert journal == {"2_0.jsonl": 3, "2_1.jsonl": 2}
    assert [row["question_id"] for row in rows_of(answers / "merge.jsonl")] == list(range(100, 105))
    assert result.stdout.count("Scene Understanding") == 1


def test_all_knows_its_benchmarks_by_their_scripts(repo: Path, tmp_path: Path) -> None:
    code, _, error = finished(started(repo, "all.sh", "path", "name", "sed", EVAL_ROOT=str(tmp_path)))
    assert code == 2
    assert "no benchmark 'sed'; there are: gqa, llava_bench, mmbench, " in error
    folder = repo / "scripts/v1_5/eval"
    scripts = {path.stem for path in folder.glob("[a-z]*.sh") if not path.stem.endswith("_lora")}
    assert {benchmarks.get(script).name for script in scripts - {"all"}} == set(benchmarks.names())
