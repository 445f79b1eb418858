"""Every benchmark, found by `names()`, keeps the same contract; and answers are put to the right question."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llava import benchmarks
from llava.benchmarks import letter_rules, paper
from llava.benchmarks.__main__ import main
from llava.benchmarks.aggregate import degenerate_warnings
from llava.benchmarks.answers import Matched, match, read_answers
from llava.benchmarks.base import Benchmark, Example
from llava.benchmarks.evaluation import score_table
from llava.errors import AnswersError, DataError, SettingsError
from llava.report.comparison import compare, read_runs, to_markdown
from llava.schema import Answer, Question, Score, Scores, Verdict, describe_count
from llava.scoring.metrics import read_scores, write_scores
from support.benchmark_downloads import MAKERS
from support.errors import raises_code
from support.warm_python import warm_python

NAMES = benchmarks.names()


@pytest.fixture
def tiny(name: str, tmp_path: Path) -> Example:
    make = MAKERS.get(name) or benchmarks.get(name).example
    assert make, f"{name} has no example download for the contract tests"
    return make(tmp_path)


@pytest.fixture
def benchmark(name: str) -> Benchmark:
    return benchmarks.get(name)


def test_the_twelve_benchmarks_are_found() -> None:
    assert set(NAMES) == set(MAKERS)
    assert benchmarks.get("sqa").name == "scienceqa"


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(SettingsError) as error:
        benchmarks.get("sed")
    assert all(name in str(error.value) for name in ("sed", "gqa", "llava_bench", "seed"))


def check_intervals(scores: Scores) -> None:
    """Check that no interval leaves the possible range or is narrow; an example has few questions."""
    for score in scores.scores:
        if score.value is None or score.low is None or score.interval == "bootstrap":
            continue
        high = score.high or 0.0
        assert 0.0 <= score.low <= score.value + 1e-9
        assert score.value - 1e-9 <= high <= score.top + 1e-9
        assert high - score.low > 0.1 * score.top


@pytest.mark.parametrize(
    ("n", "of", "text"),
    [(20, 97, "20 of 97"), (97, 97, "97"), (250, 97, "250 (not the official 97)"), (250, None, "250")],
)
def test_more_questions_than_the_official_ones_are_others(n: int, of: int | None, text: str) -> None:
    assert Score("x", 50.0, n, of=of).count == text
    sizes = {"x": {"x": of}} if of else {}
    assert replace(benchmarks.get("seed"), official_sizes=sizes).describe_count(n, "x") == f"{text} questions"
    assert Score("x", None, n, of=of).count == str(n)


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    def test_a_limited_run_is_scored_over_what_was_asked_and_says_so(
        self, benchmark: Benchmark, tiny: Example, tmp_path: Path
    ) -> None:
        units = [str(benchmark.unit_of(answer.question_id)) for answer in tiny.answers]
        asked = [answer for answer, unit in zip(tiny.answers, units, strict=True) if unit == units[-1]]
        benchmark = replace(benchmark, official_sizes={})
        whole = benchmark.score(tmp_path, tiny.answers, split=tiny.split)
        limited = benchmark.score(tmp_path, asked, split=tiny.split, allow_missing="left out")
        assert limited.counts["questions"] == limited.counts["answered"] <= whole.counts["questions"]
        if len(asked) < len(tiny.answers):
            assert "--limit" in " ".join(limited.notes)
            headline, n = limited.get(limited.headline), whole.get(limited.headline).n
            assert headline.value is None or headline.count == describe_count(headline.n, n)

    def test_a_score_says_how_many_of_the_official_questions_it_is_over(
        self, benchmark: Benchmark, tiny: Example, tmp_path: Path
    ) -> None:
        assert benchmark.official_sizes or benchmark.name not in MAKERS
        assert set(benchmark.official_sizes) <= set(benchmark.splits)
        scores = benchmark.score(tmp_path, tiny.answers, split=tiny.split)
        headline = scores.get(scores.headline)
        split = benchmark.pick_split(tiny.split)
        assert headline.of == benchmark.official_sizes.get(split, {}).get(scores.headline)
        quoted = [score for score in scores.scores if score.quoted]
        assert headline in quoted
        assert {score.name for score in quoted} <= set(benchmark.quoted or [scores.headline])
        assert all(score.of for score in quoted) or benchmark.name not in MAKERS
        starred = [line for line in score_table(scores).splitlines() if line.split()[1:2] == ["*"]]
        assert len(starred) == len(quoted)
        for line, score in zip(starred, quoted, strict=True):
            assert " ".join(line.split()).startswith(f"{score.name} * {score.count} ")
        write_scores(tmp_path / "out", scores)
        assert read_scores(tmp_path / "out").get(scores.headline).of == headline.of

    def test_right_answers_get_the_best_score_with_an_interval(
        self, benchmark: Benchmark, tiny: Example, tmp_path: Path
    ) -> None:
        scores = benchmark.score(tmp_path, tiny.answers, split=tiny.split)
        headline = scores.get(scores.headline)
        assert headline.value == pytest.approx(tiny.best)
        assert headline.n > 0
        assert headline.low is not None
        assert headline.low <= tiny.best <= (headline.high or 0.0) + 1e-9
        check_intervals(scores)
        assert scores.counts["questions"] == scores.counts["answered"] == len(scores.verdicts)
        assert scores.counts["unanswered"] == scores.counts["unparsable"] == scores.counts["duplicates"] == 0
        assert all(verdict.score == 1.0 for verdict in scores.verdicts if benchmark.name != "llava_bench")

    def test_metrics_json_gives_the_scores_back(
        self, benchmark: Benchmark, tiny: Example, tmp_path: Path
    ) -> None:
        scores = benchmark.score(tmp_path, tiny.answers, split=tiny.split)
        path = write_scores(tmp_path / "out", scores)
        assert read_scores(path) == read_scores(tmp_path / "out") == scores

    @pytest.mark.parametrize("text", ["Yes", "No", "A"])
    def test_few_answers_that_are_all_alike_leave_every_score_uncertain(
        self, benchmark: Benchmark, tiny: Example, tmp_path: Path, text: str
    ) -> None:
        answers = [replace(answer, text=text) for answer in tiny.answers]
        check_intervals(benchmark.score(tmp_path, answers, split=tiny.split))

    def test_a_missing_answer_is_named_or_counts_as_wrong(
        self, benchmark: Benchmark, tiny: Example, tmp_path: Path
    ) -> None:
        with raises_code("missing-answers", AnswersError):
            benchmark.score(tmp_path, tiny.answers[:-1], split=tiny.split)
        scores = benchmark.score(tmp_path, tiny.answers[:-1], split=tiny.split, allow_missing=True)
        assert scores.counts["unanswered"] == 1
        assert (scores.get(scores.headline).value or 0.0) < tiny.best
        assert "no answer and count as wrong" in scores.notes[0]
        assert "no answer and count as wrong" in score_table(scores)

    def test_an_answer_to_another_question_is_named(
        self, benchmark: Benchmark, tiny: Example, tmp_path: Path
    ) -> None:
        stranger = replace(tiny.answers[0], question_id=987654321)
        with raises_code("unknown-questions", AnswersError) as error:
            benchmark.score(tmp_path, [*tiny.answers, stranger], split=tiny.split)
        assert "987654321" in str(error.value)

    def test_an_answer_said_twice_counts_once(
        self, benchmark: Benchmark, tiny: Example, tmp_path: Path
    ) -> None:
        scores = benchmark.score(tmp_path, [*tiny.answers, tiny.answers[0]], split=tiny.split)
        assert scores.counts["duplicates"] == 1
        assert scores.get(scores.headline).value == pytest.approx(tiny.best)

    def test_answers_that_contradict_are_an_error(
        self, benchmark: Benchmark, tiny: Example, tmp_path: Path
    ) -> None:
        other = replace(tiny.answers[0], text="something else")
        with raises_code("conflicting-answers", AnswersError):
            benchmark.score(tmp_path, [*tiny.answers, other], split=tiny.split)

    def test_the_prepared_question_file_asks_what_was_built(
        self, benchmark: Benchmark, tiny: Example, tmp_path: Path
    ) -> None:
        built = benchmark.read_questions(tmp_path, tiny.split)
        path = benchmark.question_path(tmp_path, tiny.split)
        if not path.is_file():
            assert benchmark.prepare(tmp_path, path, split=tiny.split) == len(built)
        assert benchmark.read_questions(tmp_path, tiny.split) == built

    def test_an_unknown_split_is_named(self, benchmark: Benchmark, tmp_path: Path) -> None:
        with raises_code("unknown-split", SettingsError) as error:
            benchmark.read_questions(tmp_path, "tset")
        assert all(fact in str(error.value) for fact in ("tset", benchmark.splits[0]))

    def test_an_empty_root_says_what_is_wanted(self, benchmark: Benchmark, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=str(tmp_path)):
            benchmark.read_questions(tmp_path)


def run(*args: object) -> subprocess.CompletedProcess[str]:
    command = [warm_python(), "-m", "llava.benchmarks", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_prepares_scores_and_submits(tmp_path: Path) -> None:
    tiny = MAKERS["seed"](tmp_path)
    answers = tmp_path / "answers.jsonl"
    answers.write_text(
        "".join(json.dumps({"question_id": a.question_id, "text": a.text}) + "\n" for a in tiny.answers)
    )
    prepared = run("prepare", "seed", "--root", tmp_path)
    assert prepared.stdout == f"wrote {tmp_path}/llava-seed-bench-image.jsonl: 3 of 14233 questions\n"
    scored = run("score", "seed", "--root", tmp_path, "--answers", answers, "--save-path", tmp_path / "out")
    assert scored.returncode == 0, scored.stderr
    lines = [line.split() for line in scored.stdout.splitlines()]
    assert lines[1] == ["Instance", "Location", "2", "of", "978", "100.00", "[34.24,", "100.00]"]
    assert lines[3][:6] == ["image", "*", "3", "of", "14233", "100.00"]
    assert read_scores(tmp_path / "out").get("image").value == 100.0
    sent = run("submit", "seed", "--root", tmp_path, "--answers", answers, "--output", tmp_path / "up.jsonl")
    assert sent.returncode == 0, sent.stderr
    assert (tmp_path / "up.jsonl").read_text().splitlines()[0] == '{"question_id": "11", "prediction": "B"}'


@pytest.mark.parametrize(
    "words",
    [
        "submit seed --answers answers.jsonl --output answers.jsonl",
        "submit seed --answers answers.jsonl --output SEED-Bench.json",
        "prepare seed --force --output SEED-Bench.json",
        "score seed --answers out/metrics.json --save-path out",
    ],
)
def test_no_output_of_the_command_replaces_an_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    MAKERS["seed"](tmp_path)
    (tmp_path / "out").mkdir()
    for name in ("answers.jsonl", "out/metrics.json"):
        (tmp_path / name).write_text('{"question_id": 11, "text": "B"}\n')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["llava benchmarks", *words.split(), "--root", "."])
    with raises_code("output-is-input"):
        main()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_command_leaves_no_metrics_when_answers_are_missing(tmp_path: Path) -> None:
    MAKERS["seed"](tmp_path)
    (tmp_path / "a.jsonl").write_text('{"question_id": 11, "text": "B"}\n')
    result = run(
        "score", "seed", "--root", tmp_path, "--answers", tmp_path / "a.jsonl", "--save-path", tmp_path / "o"
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: seed: 2 of 3 questions have no answer: 12, 13;")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_what_only_a_server_can_score_leaves_its_upload(tmp_path: Path) -> None:
    rows = [{"image": "a.jpg", "question": "What is this?"}]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text('{"question_id": 0, "text": "A Dog."}\n')
    result = run(
        "score",
        "vizwiz",
        "--root",
        tmp_path,
        "--answers",
        tmp_path / "a.jsonl",
        "--save-path",
        tmp_path / "o",
    )
    assert result.returncode == 0, result.stderr
    assert "vizwiz has no local score; wrote" in result.stdout
    assert (tmp_path / "o/submission.json").read_text() == '[{"image": "a.jpg", "answer": "dog"}]'
    scores = read_scores(tmp_path / "o")
    assert scores.get("overall").value is None
    assert scores.verdicts[0].status == "unjudged"


TWINS = [Question("i", "Is it red?\nShort."), Question("i", "Is it blue?\nShort."), Question("j", "Why?")]


def said(*rows: tuple[str, str, str]) -> list[Answer]:
    return [Answer(key, prompt, text) for key, prompt, text in rows]


def texts(
    questions: Sequence[Question], answers: Sequence[Answer], *, allow_missing: bool = False
) -> list[str]:
    matched = match(questions, answers, allow_missing=allow_missing, name="x")
    return [answer.text if answer else "-" for answer in matched.answers]


class TestMatching:
    def test_a_repeated_id_goes_by_prompt_whatever_the_order(self) -> None:
        answers = said(
            ("i", "Is it blue?\nShort.", "no"), ("j", "", "so"), ("i", "<image>\nIs it red?\nShort.", "yes")
        )
        assert texts(TWINS, answers) == ["yes", "no", "so"]

    def test_without_prompts_a_repeated_id_goes_by_order(self) -> None:
        assert texts(TWINS, said(("i", "", "yes"), ("i", "", "no"), ("j", "", "so"))) == ["yes", "no", "so"]

    def test_one_of_two_with_prompt_leaves_the_other_missing(self) -> None:
        answers = said(("i", "Is it blue?\nShort.", "no"), ("j", "", "so"))
        assert texts(TWINS, answers, allow_missing=True) == ["-", "no", "so"]

    def test_one_of_two_without_prompt_is_refused(self) -> None:
        with raises_code("ambiguous-answers", AnswersError):
            texts(TWINS, said(("i", "", "no"), ("j", "", "so")), allow_missing=True)

    def test_the_same_question_twice_may_share_an_answer(self) -> None:
        assert texts([TWINS[0], TWINS[0]], said(("i", "", "no"))) == ["no", "no"]

    def test_ids_compare_as_text(self) -> None:
        assert texts([Question("101669", "")], [Answer(101669, "", "A")]) == ["A"]

    def test_contradicting_answers_to_one_prompt_are_refused(self) -> None:
        rows = [("i", "Is it red?\nShort.", text) for text in ("yes", "no")]
        with raises_code("conflicting-answers", AnswersError) as error:
            texts(TWINS, said(*rows, ("i", "Is it blue?\nShort.", "no"), ("j", "", "so")))
        assert "question i" in str(error.value)

    def test_answers_to_other_prompts_are_counted(self) -> None:
        matched = match([TWINS[2]], said(("j", "When?", "so")), allow_missing=False, name="x")
        assert matched.other_prompts == 1
        assert (
            match([TWINS[2]], said(("j", "Why?\nShort.", "so")), allow_missing=False, name="x").other_prompts
            == 0
        )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"question_id": 1, "prompt": "p", "text": "yes", "model_id": "m", "round_id": 0}\n'),
        ("a.jsonl", '{"question_id": 1, "prediction": "yes"}\n'),
        ("a.json", '[{"questionId": 1, "prediction": "yes"}]'),
        ("a.json", '[{"question_id": 1, "answer": "yes"}]'),
        ("a.json", '{"1": "yes"}'),
    ],
)
def test_answers_are_read_in_every_shape(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    (answer,) = read_answers(tmp_path / name)
    assert (str(answer.question_id), answer.text) == ("1", "yes")


@pytest.mark.parametrize(
    ("content", "code", "facts"),
    [
        ('{"question_id": 1}\n', "missing-key", ("a.jsonl:1", "question_id")),
        ('{"question_id": 1, "text": "A"}\n{"question_id": 2, "te', "not-json", ("a.jsonl:2",)),
        ('{"question_id": 1, "text": null}\n', "missing-key", ("a.jsonl:1",)),
        ('{"question_id": 1, "text": 3}\n', "wrong-type", ("a.jsonl:1", "text", "3")),
        ('{"question_id": [1], "text": "A"}\n', "bad-id", ("a.jsonl:1", "id", "[1]")),
        ('{"question_id": 1, "text": "A", "prompt": 5}\n', "wrong-type", ("a.jsonl:1", "prompt", "5")),
        ('{"question_id": 1, "text": "A", "text": "B"}\n', "repeated-key", ("a.jsonl:1", "text")),
        (
            '{"question_id": 1, "text": "A", "model_id": "x"}\n{"question_id": 2, "text": "A"}\n'
            '{"question_id": 7, "text": "A", "model_id": "y"}\n',
            "several-models",
            ("a.jsonl:3", "7", "'x'", "'y'"),
        ),
    ],
)
def test_a_damaged_answers_file_is_named_with_its_line(
    tmp_path: Path, content: str, code: str, facts: tuple[str, ...]
) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with raises_code(code) as error:
        read_answers(tmp_path / "a.jsonl")
    assert all(fact in str(error.value) for fact in facts)


@pytest.mark.parametrize("name", benchmarks.names())
@pytest.mark.parametrize(
    "content", ["5", "null", '"A"', "[1]", '{"1": 2}', '{"outputs": 5}', '{"correct": 5, "incorrect": []}']
)
def test_a_json_file_that_holds_no_answers_is_the_users_error(
    tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises((AnswersError, DataError), match=r"a\.json"):
        benchmarks.get(name).read_answers(tmp_path / "a.json")


def test_null_prompt_model_and_round_are_as_absent(tmp_path: Path) -> None:
    tiny = MAKERS["mmbench"](tmp_path)
    rows = [
        {"question_id": a.question_id, "text": a.text, "prompt": None, "model_id": None, "round_id": None}
        for a in tiny.answers
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mmbench = benchmarks.get("mmbench")
    assert mmbench.score(tmp_path, mmbench.read_answers(tmp_path / "a.jsonl")).get("circular").value == 100.0


def test_answers_told_apart_by_order_alone_are_noted(tmp_path: Path) -> None:
    tiny = MAKERS["mme"](tmp_path)
    answers = [replace(answer, prompt="") for answer in tiny.answers]
    scores = benchmarks.get("mme").score(tmp_path, answers)
    assert scores.notes[0].startswith(f"{len(answers)} of {len(answers)} answers")
    assert not benchmarks.get("mme").score(tmp_path, tiny.answers).notes


def test_white_space_that_costs_points_is_noted(tmp_path: Path) -> None:
    tiny = MAKERS["seed"](tmp_path)
    scores = benchmarks.get("seed").score(tmp_path, [replace(a, text=f"{a.text}\n") for a in tiny.answers])
    assert scores.get("image").value == 0.0
    assert scores.notes[0] == (
        "3 answers without points have white space around them, which the official rule keeps"
    )


OPTIONS = {"A": "a red cat", "B": "dog", "C": "rain"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("B.", "B"), ("(B)", "B"), ("B. dog", "B"), ("The answer is C", "C"), (":C).", "C"),
        ("A", "A"), ("A. a red cat", "A"), ("A man in the rain", "C"), ("A man walks his pet", None),
        ("It is a Dog", "B"), ("a dog in the rain", None), ("A or B", None), ("E", None), ("", None),
        ("The answer is A.", "A"), ("I think it is A.", "A"), ("A. Yes, it is", "A"), ("A. dog", "A"),
        ("The answer is A", None), ("A man has B", None), ("D. dog", None),
        ("B. Because it barks at me", "B"), ("A, B", "B"), ("A. or B.", None), ("选项：C。", None),
    ],
)  # fmt: skip
def test_the_option_letter_is_found_or_none(text: str, letter: str | None) -> None:
    assert letter_rules.extract_letter(text, OPTIONS) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"), ("B. foo", "B"), ("B.", None), ("The answer is D.", "D"), ("The answer is Z.", "Z"),
        ("The answer is D. The answer is B.", None), ("I think C", None), ("b", None),
        ("The answer is C", None), ("", None), ("AB", None), ("ABCDE", None),
    ],
)  # fmt: skip
def test_scienceqa_reads_letters_as_the_original(text: str, letter: str | None) -> None:
    assert letter_rules.scienceqa_letter(text, "ABCDE") == letter


@pytest.mark.parametrize(
    ("name", "file", "content", "code", "facts"),
    [
        (
            "seed",
            "llava-seed-bench-image.jsonl",
            '{"question_id": 1}\n',
            "missing-key",
            ("image.jsonl:1", "text"),
        ),
        ("vqav2", "annotations.json", '{"answers": []}', "missing-key", ("annotations.json", "annotations")),
        (
            "vqav2",
            "annotations.json",
            '{"annotations": [{"question_id": 1, "answers": 5}]}',
            "record-shape",
            (),
        ),
        ("seed", "SEED-Bench.json", '{"questions": [5], "question_type": {}}', "record-shape", ()),
        (
            "seed",
            "SEED-Bench.json",
            '{"questions": [{"question_id": "1", "question_type_id": 1, "data_type": "image",'
            ' "answer": null}], "question_type": {}}',
            "wrong-label",
            ("question 0", "None"),
        ),
        ("vqav2", "annotations.json", "[]", "not-an-object", ("annotations.json", "list")),
        ("textvqa", "TextVQA_0.5.1_val.json", "{}", "missing-key", ("val.json", "data")),
        (
            "pope",
            "coco/coco_pope_random.json",
            '{"question_id": 1}\n',
            "missing-key",
            ("random.json:1", "label"),
        ),
        (
            "pope",
            "coco/coco_pope_random.json",
            '{"label": "maybe"}\n',
            "wrong-label",
            ("random.json:1", "maybe"),
        ),
        (
            "mmbench",
            "mmbench_dev_20230712.tsv",
            "index\tquestion\n1\tQ\n",
            "missing-column",
            ("tsv:1", "A, B"),
        ),
        ("scienceqa", "llava_test_CQM-A.json", '[{"id": "4"}]', "record-shape", ("element 0",)),
    ],
)
def test_a_damaged_official_file_is_named_with_its_place(
    tmp_path: Path, name: str, file: str, content: str, code: str, facts: tuple[str, ...]
) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    benchmark = benchmarks.get(name)
    answers = [Answer(1, "", "A")]
    with raises_code(code, DataError) as error:
        # VQAv2's annotations are the truth, not the questions.
        benchmark.score(tmp_path, answers) if name == "vqav2" else benchmark.read_questions(tmp_path)
    assert all(fact in str(error.value) for fact in facts)


# Files of each benchmark in which ID stands for a question's id.
ID_PLACES = {
    "jsonl": ("seed", "llava-seed-bench-image.jsonl", '{"question_id": ID, "text": "t"}'),
    "seed": ("seed", "SEED-Bench.json",
             '{"question_type": {}, "questions": '
             '[{"question_id": ID, "question_type_id": 1, "data_type": "image", "answer": "A"}]}'),
    "scienceqa": ("scienceqa", "llava_test_CQM-A.json",
                  '[{"id": ID, "conversations": [{"value": "q\\nA. x"}, {"value": "A"}]}]'),
    "pid_splits": ("scienceqa", "pid_splits.json", '{"test": [ID]}'),
    "vqav2": ("vqav2", "v2_OpenEnded_mscoco_test-dev2015_questions.json",
              '{"questions": [{"question_id": ID, "question": "q", "image_id": 7}]}'),
    "textvqa": ("textvqa", "TextVQA_0.5.1_val.json",
                '{"data": [{"question_id": 7, "image_id": ID, "question": "q", "answers": ["a"]}]}'),
    "llava_bench": ("llava_bench", "questions.jsonl", '{"question_id": ID, "text": "t"}'),
}  # fmt: skip
NO_IDS = ["null", "true", "[1]", "{}", "1.5", '""', '" "', "NaN"]


@pytest.mark.parametrize("identifier", NO_IDS)
@pytest.mark.parametrize("place", ID_PLACES)
def test_a_question_without_an_id_is_refused_before_it_is_asked(
    tmp_path: Path, place: str, identifier: str
) -> None:
    name, file, content = ID_PLACES[place]
    (tmp_path / "problems.json").write_text("{}")
    (tmp_path / file).write_text(content.replace("ID", identifier))
    with raises_code("not-json" if identifier == "NaN" else "bad-id", DataError) as error:
        benchmarks.get(name).read_questions(tmp_path)
    assert str(tmp_path / file) in str(error.value)
    assert "Record" not in str(error.value)


@pytest.mark.parametrize("identifier", NO_IDS)
@pytest.mark.parametrize("file", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("name", benchmarks.names())
def test_an_answer_without_an_id_is_refused(tmp_path: Path, name: str, file: str, identifier: str) -> None:
    row = f'{{"question_id": {identifier}, "text": "A", "prompt": "p"}}'
    (tmp_path / file).write_text(f"[{row}]" if file == "a.json" else row)
    with raises_code("not-json" if identifier == "NaN" else "bad-id", DataError) as error:
        benchmarks.get(name).read_answers(tmp_path / file)
    assert str(tmp_path / file) in str(error.value)


def test_the_papers_row_has_its_numbers_in_the_papers_form(tmp_path: Path) -> None:
    for name in ("seed", "mmbench", "mme", "scienceqa", "vqav2"):
        tiny = MAKERS[name](tmp_path / name)
        scores = benchmarks.get(name).score(tmp_path / name, tiny.answers, split=tiny.split)
        write_scores(tmp_path / name / "out", scores)
    folders = [
        tmp_path / name / "out/metrics.json" for name in ("seed", "mmbench", "mme", "scienceqa", "vqav2")
    ]
    shown = run("row", "--name", "tuned", *folders).stdout.splitlines()
    seed, mmbench, mme, gqa, vqav2, scienceqa = re.split(r"  +", shown[1].removeprefix("tuned").strip())
    assert seed == "100.00 (3 of 14233)"
    assert (mmbench, mme) == ("100.00 (2 of 1176)", "600.0/- (12 of 2114)")
    assert (gqa, vqav2) == ("-", "100.00 (2 of 214354)")
    assert scienceqa == "100.00/100.00 (2 of 4241, 1 of 2017)"
    assert shown[2].startswith("published: DataEngine baseline 7B LoRA ")
    assert shown[2].split()[-7:] == ["66.04", "66.66", "1475/290", "(1765)", "57.27", "77.56", "70.67/68.27"]
    assert shown[3].split()[-7:] == ["68.57", "67.18", "1511/303", "(1814)", "58.02", "78.18", "73.17/71.15"]
    assert shown[4].split()[-6:] == ["-", "66.1", "1476.9/-", "63.0", "79.1", "-/68.4"]


def test_what_lacks_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    MAKERS["mmbench"](tmp_path / "mmbench")
    told = run("present", "--eval-root", tmp_path, "gqa", "mmbench")
    assert told.stdout == "mmbench\n"
    assert f"left out: gqa: {tmp_path}/gqa lacks testdev_balanced_questions.json or " in told.stderr
    assert run("present", "--need-all", "--eval-root", tmp_path, "gqa", "mmbench").returncode == 2


@pytest.mark.parametrize(
    ("name", "question_file"),
    [
        ("vqav2", "llava_vqav2_mscoco_val2014"),
        ("vizwiz", "llava_val"),
        ("mmbench", "mmbench_test_20230712"),
    ],
)
def test_another_split_is_there_by_its_own_files(name: str, question_file: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path / name)
    for folder in ("val2014", "val"):
        (tmp_path / name / folder).mkdir()
        (tmp_path / name / folder / "x.jpg").touch()
    (tmp_path / name / "mmbench_dev_20230712.tsv").unlink(missing_ok=True)
    (tmp_path / name / "mmbench_test_20230712.tsv").touch()
    assert run("present", "--eval-root", tmp_path, name).stdout == ""
    assert run("present", "--eval-root", tmp_path, f"{name}={question_file}").stdout == f"{name}\n"


@pytest.mark.parametrize("name", benchmarks.names())
def test_every_benchmark_says_what_it_needs_and_where_that_is(name: str, tmp_path: Path) -> None:
    benchmark = benchmarks.get(name)
    assert benchmark.missing(tmp_path)
    assert benchmark.download


def test_the_readme_has_the_table_of_the_modules() -> None:
    readme = Path(benchmarks.__file__ or "").with_name("README.md").read_text()
    table = readme.split("<!-- table: llava benchmarks list --markdown -->\n")[1].split("<!-- end -->")[0]
    assert table == run("list", "--markdown").stdout


def verdicts_of(texts: Sequence[str], truths: Sequence[str]) -> tuple[list[Verdict], Matched]:
    rows = list(zip(texts, truths, strict=True))
    verdicts = [
        Verdict(number, "x", 0.0, text, truth, "answered" if text else "unparsable")
        for number, (text, truth) in enumerate(rows)
    ]
    return verdicts, Matched([Answer(number, "", text) for number, (text, _) in enumerate(rows)], 0, 0)


@pytest.mark.parametrize(
    ("texts", "truths", "fact"),
    [
        ([""] * 20, ["A", "B"] * 10, "20 of 20 answers are empty"),
        (["A"] * 20, ["A", "B"] * 10, "20 of 20 answers are 'a'"),
        ([*["A"] * 19, "B"], ["A", "B"] * 10, "19 of 20 answers are 'a'"),
        (["yes", "Yes."] * 10, ["A", "B"] * 10, "20 of 20 answers are 'yes'"),
        ([" ", "\n"], ["A", "B"], "2 of 2 answers are empty"),
        (["."] * 20, ["A", "B"] * 10, "20 of 20 answers are '.'"),
        ([*["A"] * 18, "B", "B"], ["A", "B"] * 10, ""),
        (["A"] * 20, ["A"] * 20, ""),
        ([""] * 20, ["A"] * 20, "20 of 20 answers are empty"),
        (["A"] * 9, ["A", "B", "C"] * 3, ""),
        (["A"] * 20, [""] * 20, "20 of 20 answers are 'a'"),
    ],
)
def test_degenerate_answers_are_warned_of(texts: list[str], truths: list[str], fact: str) -> None:
    warnings = degenerate_warnings(*verdicts_of(texts, truths))
    assert [fact in warning for warning in warnings] == ([True] if fact else [])


def test_answers_that_no_rule_parses_are_warned_of() -> None:
    verdicts, matched = verdicts_of([f"text {n}" for n in range(20)], ["A", "B"] * 10)
    assert not degenerate_warnings(verdicts, matched)
    verdicts = [replace(verdict, status="unparsable") for verdict in verdicts]
    assert "20 of 20 answers cannot be parsed" in degenerate_warnings(verdicts, matched)[0]


def test_empty_answers_for_a_server_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = benchmarks.evaluation_of("vizwiz", None, tmp_path, "broken")
    target.merged.parent.mkdir(parents=True)
    target.merged.write_text('{"question_id": 0, "text": " "}\n')
    assert target.score(answered_at=target.merged) is None
    assert "1 of 1 answers are empty" in caplog.text


def test_yes_in_many_words_is_one_answer(tmp_path: Path) -> None:
    labels = [json.dumps({"text": f"Is there {n}?", "image": "1.jpg", "label": "yes" if n % 2 else "no"})
              for n in range(12)]  # fmt: skip
    for name in ("adversarial", "popular", "random"):
        (tmp_path / f"coco_pope_{name}.json").write_text("\n".join(labels) + "\n")
    questions = benchmarks.get("pope").read_questions(tmp_path)
    said = [Answer(question.id, "", f"Yes, {number} of them") for number, question in enumerate(questions)]
    assert "36 of 36 answers are 'yes'" in benchmarks.get("pope").score(tmp_path, said).warnings[0]


def test_a_warning_stands_wherever_the_number_does(tmp_path: Path) -> None:
    scores = Scores("seed", "image", (Score("image", 66.67, 20),), warnings=("all empty",))
    write_scores(tmp_path / "a", scores)
    assert score_table(scores).startswith("WARNING: all empty\n")
    row = run("row", "--name", "a", tmp_path / "a/metrics.json").stdout
    assert "66.67!" in row
    assert "66.67!" in score_table(scores)
    assert "WARNING: seed: all empty." in row
    report = to_markdown(runs := read_runs([tmp_path / "a/metrics.json"]), compare(runs))
    assert "**WARNING** a: all empty." in report
    assert "| 66.67! |" in report


def test_mme_says_which_subtasks_are_missing(tmp_path: Path) -> None:
    tiny = MAKERS["mme"](tmp_path)
    scores = benchmarks.get("mme").score(tmp_path, tiny.answers)
    assert scores.get("perception").count == f"{scores.get('perception').n} of 2114"


@pytest.mark.parametrize("text", ["   Yes", "\tYes", "\nYes", "Yes\r\nindeed", "no\tyes", "\n\n\nYes"])
def test_mmes_own_program_reads_the_same_answer_in_the_submission(tmp_path: Path, text: str) -> None:
    tiny = MAKERS["mme"](tmp_path)
    answers = [replace(answer, text=text) for answer in tiny.answers]
    mme = benchmarks.get("mme")
    mme.write_submission(tmp_path, answers, tmp_path / "sent")
    scores = [mme.score(tmp_path, rows).scores for rows in (answers, mme.read_answers(tmp_path / "sent"))]
    assert scores[0] == scores[1]


def test_mme_in_the_papers_row_has_its_total() -> None:
    both = (Score("perception", 1510.66, 2114), Score("cognition", 303.21, 260))
    row = paper.table("m", [Scores("mme", "perception", both)]).splitlines()[1]
    assert row.split() == ["m", "-", "-", "1510.7/303.2", "(1813.9)", "-", "-", "-/-"]
