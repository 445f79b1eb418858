"""Engine records to samples: what is read, refused and why, how it is asked, and that nothing gets lost."""

from __future__ import annotations

import json
import re
from collections import Counter
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

import pytest

from llava.data_engine.convert import Conversion, ConversionSettings
from llava.data_engine.formats import MODES, shuffled
from llava.data_engine.pipeline import convert_files
from llava.data_engine.question_types import SKILLS, find_skill
from llava.data_engine.records import Choice, EngineRecord, parse_record
from llava.data_engine.text import Unusable
from llava.errors import DataError, SettingsError
from llava.samples import parse_sample, read_samples, sample_to_row
from support.errors import raises_code
from support.full_disk import files_of_at_most

LETTER_SENTENCE = "Answer with the option's letter from the given choices directly."
SHORT_SENTENCE = "Answer the question using a single word or phrase."
# The published README's example, whose short answer is misspelt, as is the key of the letter.
README_RECORD: dict[str, Any] = {
    "instruction": "Where is the man wearing a black backpack positioned in the picture?",
    "answer": "The man wearing a black backpack is located at the left side of the image.",
    "short_answer": "Letf middle",
    "options": ["Top right corner", "Bottom right corner", "Bottom left corner", "Left middle"],
    "choide_answer": "D",
    "image": "vg/VG_100K_2/2404787.jpg",
    "qtype": 4,
}


def record(**changes: Any) -> dict[str, Any]:
    """The README's record with changes; None takes a field away."""
    return {key: value for key, value in (README_RECORD | changes).items() if value is not None}


def parse(**changes: Any) -> EngineRecord:
    return parse_record(record(**changes), 7)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def convert(tmp_path: Path, rows: list[Any], **settings: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(samples, report) of a conversion of `rows`."""
    engine = write(tmp_path / "engine.json", rows)
    report = convert_files(ConversionSettings(engine=(engine,), **settings), tmp_path / "out.json")
    return json.loads((tmp_path / "out.json").read_text(encoding="utf-8")), report


def problems(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "out.problems.jsonl").read_text().splitlines()]


# --- what is read ---


@pytest.mark.parametrize("key", ["choice_answer", "choide_answer"])
def test_both_spellings_of_the_letter_are_read(key: str) -> None:
    row = {name: value for name, value in README_RECORD.items() if name != "choide_answer"}
    got = parse_record(row | {key: "D", "unknown": {"deep": []}}, 7)
    assert got.choice == Choice(tuple(README_RECORD["options"]), 3)
    assert (got.position, got.skill, got.short_answer) == (7, "Instance Location", "Letf middle")
    assert not got.faults


def test_the_first_engines_records_are_read_as_they_were_published(realdata: Path, tmp_path: Path) -> None:
    source = realdata / "dataengine/gptvqa_train_data.json"
    report = convert_files(ConversionSettings(engine=(source,)), tmp_path / "out.json")
    rows = json.loads(source.read_text())
    samples = {str(sample.id): sample for sample in read_samples(tmp_path / "out.json")}
    assert report["reasons"] == {}
    assert report["absent"] == {"da": len(rows), "mc": 0, "mcp": 0}
    for place, row in enumerate(rows):
        sample = samples[f"engine_mc_{place}"]
        assert sample.image == f"coco/train2017/{row['image_id']:012}.jpg"
        assert sample.turns[1].text == "ABCD"[row["correct_choice_idx"]]
        assert (
            f"\n{sample.turns[1].text}. {row['choices'][row['correct_choice_idx']]}\n" in sample.turns[0].text
        )


def test_raw_output_of_the_first_engine_is_refused_as_not_parsed(realdata: Path, tmp_path: Path) -> None:
    source = realdata / "dataengine/gptvqa_result.jsonl"
    with raises_code("no-samples", DataError) as error:
        convert_files(ConversionSettings(engine=(source,)), tmp_path / "out.json")
    assert "first_engine_not_parsed 3" in str(error.value)
    assert [row["index"] for row in problems(tmp_path)] == [1, 2, 3]
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("vg/VG_100K/1.jpg", "vg/VG_100K/1.jpg"),
        ("VG_100K_2/1.jpg", "vg/VG_100K_2/1.jpg"),
        ("vg\\VG_100K\\1.jpg", "vg/VG_100K/1.jpg"),
        (" ./coco/train2017/1.jpg ", "coco/train2017/1.jpg"),
        ("VG_100K_3/1.jpg", "VG_100K_3/1.jpg"),
    ],
)
def test_an_image_is_a_path_under_the_image_folder(given: str, wanted: str) -> None:
    assert parse(image=given).image == wanted


@pytest.mark.parametrize("label", [9, "9", "Text Understanding", " text understanding "])
def test_a_skill_is_an_id_or_a_name(label: object) -> None:
    assert find_skill(label) == SKILLS[8]
    assert parse(qtype=label).skill == "Text Understanding"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["A. cat", "B. dog"], ("cat", "dog")),
        (["(a) cat", "(b)dog"], ("cat", "dog")),
        (["A) cat", "B: dog"], ("cat", "dog")),
        (["A. Lincoln", "Washington"], ("A. Lincoln", "Washington")),
        (["A. Lincoln", "J. Adams"], ("A. Lincoln", "J. Adams")),
        (["A.M.", "B.C."], ("A.M.", "B.C.")),
        (["A. ", "B. "], ("A.", "B.")),
        ([" big\r\n  cat ", "dog\u2028house"], ("big cat", "dog house")),
        ([1, 20], ("1", "20")),
        (["a cat", "A cat"], ("a cat", "A cat")),
    ],
)
def test_labels_go_from_options_when_all_have_theirs(given: list[Any], wanted: tuple[str, ...]) -> None:
    assert parse(options=given, choide_answer="b").choice == Choice(wanted, 1)


@pytest.mark.parametrize("letter", ["D", "d", " D ", "(d)", "D.", "D)", "D:"])
def test_a_letter_is_read_in_any_dress(letter: str) -> None:
    got = parse(choide_answer=letter).choice
    assert got is not None
    assert got.correct == 3


# --- what is refused ---


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("text", "not_an_object"),
        ([], "not_an_object"),
        (record(instruction=None), "instruction_missing"),
        (record(instruction=" \n "), "instruction_empty"),
        (record(instruction="\u200b"), "instruction_empty"),
        (record(instruction=["a"]), "instruction_not_text"),
        (record(instruction="a <image> b"), "instruction_control_text"),
        (record(instruction="USER: a ASSISTANT: b"), "instruction_control_text"),
        (record(instruction="half \ud83d"), "instruction_control_text"),
        (record(instruction="nul \0"), "instruction_control_text"),
        (record(image=None), "image_missing"),
        (record(image=""), "image_empty"),
        (record(image=3.5), "image_not_text"),
        (record(image="/data/1.jpg"), "image_unsafe_path"),
        (record(image="vg/../../1.jpg"), "image_unsafe_path"),
        (record(image="C:\\1.jpg"), "image_unsafe_path"),
        (record(image="https://host/1.jpg"), "image_unsafe_path"),
        (record(image=".."), "image_unsafe_path"),
        (record(image="."), "image_unsafe_path"),
        ({"question": "Why?", "image_id": "9" * 5000}, "image_missing"),
        ({"question": "Why?", "image_id": [[1]]}, "image_missing"),
        (record(qtype=10), "qtype_unknown"),
        (record(qtype=True), "qtype_unknown"),
        (record(qtype="Cooking"), "qtype_unknown"),
        (record(conversations=[]), "already_a_sample"),
        ({"image_id": 1, "raw_instructions": "Question: ..."}, "first_engine_not_parsed"),
    ],
)
def test_a_record_that_cannot_be_used_says_why(row: object, reason: str) -> None:
    with pytest.raises(Unusable, match=f"^{reason}$"):
        parse_record(row, 0)


@pytest.mark.parametrize(
    ("changes", "needs", "reason"),
    [
        ({"answer": ""}, "answer", "answer_empty"),
        ({"answer": 0.5}, "answer", "answer_not_text"),
        ({"answer": "Yes</s>"}, "answer", "answer_control_text"),
        ({"answer": "ASSISTANT: yes"}, "answer", "answer_control_text"),
        ({"short_answer": "<unk>"}, "short_answer", "short_answer_control_text"),
        ({"choide_answer": None}, "choice", "letter_missing"),
        ({"choide_answer": ""}, "choice", "letter_missing"),
        ({"choide_answer": "E"}, "choice", "letter_out_of_range"),
        ({"choide_answer": "AB"}, "choice", "letter_not_a_letter"),
        ({"choide_answer": "D. Left middle"}, "choice", "letter_not_a_letter"),
        ({"choide_answer": 3}, "choice", "letter_not_a_letter"),
        ({"choice_answer": "A"}, "choice", "letters_disagree"),
        ({"options": None}, "choice", "options_missing"),
        ({"options": "A. x B. y"}, "choice", "options_not_a_list"),
        ({"options": ["one"]}, "choice", "options_wrong_number"),
        ({"options": [str(n) for n in range(27)]}, "choice", "options_wrong_number"),
        ({"options": ["a", "b", "c", " "]}, "choice", "option_empty"),
        ({"options": ["a", "b", "c", None]}, "choice", "option_not_text"),
        ({"options": ["a", "b", "c", "<image>"]}, "choice", "option_control_text"),
        ({"options": ["a", "b", "c", "a"], "choide_answer": "A"}, "choice", "correct_option_repeated"),
        ({"options": ["B. b", "A. a"]}, "choice", "option_labels_out_of_order"),
        ({"options": ["A. a", "A. b", "(a) c", "A: d"]}, "choice", "option_labels_out_of_order"),
        ({"options": ["A. a", "B. b", "B. c", "D. d"]}, "choice", "option_labels_out_of_order"),
    ],
)
def test_a_field_that_cannot_be_used_costs_only_the_modes_that_need_it(
    changes: dict[str, Any], needs: str, reason: str
) -> None:
    got = parse(**changes)
    assert {name: fault.reason for name, fault in got.faults.items()} == {needs: reason}
    asked = {name for name, mode in MODES.items() if mode.ask(got, 42)}
    assert asked == {name for name, mode in MODES.items() if mode.needs != needs}


def test_wrong_options_may_repeat_and_the_shuffle_still_reads_differently() -> None:
    got = parse(options=["a", "b", "b"], choide_answer="A").choice
    assert got is not None
    seen = {shuffled(got, Random(seed)).options for seed in range(50)}
    assert seen == {("b", "a", "b"), ("b", "b", "a")}


def test_the_image_token_around_a_question_is_not_the_records_fault() -> None:
    assert parse(instruction="<image>\nWhere?").instruction == "Where?"
    assert parse(instruction="Where? <image> ").instruction == "Where?"


def test_every_record_is_used_or_listed_with_its_place(tmp_path: Path) -> None:
    rows = [record(), "x", record(), record(instruction="b", choide_answer="Z"), record(image=None), {"a": 1}]
    rows += [{"instruction": "c", "image": "1.jpg"}]
    samples, report = convert(tmp_path, rows)
    assert [sample["id"] for sample in samples] == [
        "engine_da_0",
        "engine_mc_0",
        "engine_mcp_0",
        "engine_da_3",
    ]
    assert [(row["n"], row["reason"], row["modes_lost"]) for row in problems(tmp_path)] == [
        (1, "not_an_object", ["da", "mc", "mcp"]),
        (2, "duplicate", ["da", "mc", "mcp"]),
        (3, "letter_out_of_range", ["mc", "mcp"]),
        (4, "image_missing", ["da", "mc", "mcp"]),
        (5, "instruction_missing", ["da", "mc", "mcp"]),
        (6, "nothing_to_ask", ["da", "mc", "mcp"]),
    ]
    assert (report["records"], report["used"], sum(report["reasons"].values())) == (7, 2, 6)


def test_a_record_of_which_nothing_was_used_makes_no_later_one_a_duplicate(tmp_path: Path) -> None:
    rows = [record(choide_answer="E"), record(), record(), record(image="b.jpg", answer=None), record()]
    samples, report = convert(tmp_path, rows, modes=("mc",))
    assert [sample["id"] for sample in samples] == ["engine_mc_1", "engine_mc_3"]
    assert [(row["n"], row["reason"]) for row in problems(tmp_path)] == [
        (0, "letter_out_of_range"),
        (2, "duplicate"),
        (4, "duplicate"),
    ]
    assert (report["records"], report["used"]) == (5, 2)


# --- how it is asked ---


def test_the_four_modes_are_worded_like_llavas_own_mix(tmp_path: Path) -> None:
    samples, report = convert(tmp_path, [record()], modes=("da", "sa", "mc", "mcp"))
    question = README_RECORD["instruction"]
    human = [sample["conversations"][0]["value"] for sample in samples]
    assert human[0] == f"<image>\n{question}"
    assert human[1] == f"<image>\n{question}\n{SHORT_SENTENCE}"
    assert human[2] == (
        f"<image>\n{question}\nA. Top right corner\nB. Bottom right corner\nC. Bottom left corner\n"
        f"D. Left middle\n{LETTER_SENTENCE}"
    )
    assert [sample["conversations"][1]["value"] for sample in samples[:3]] == [
        README_RECORD["answer"],
        "Letf middle",
        "D",
    ]
    assert report["by_skill"] == {"Instance Location": {"da": 1, "sa": 1, "mc": 1, "mcp": 1}}
    assert list(samples[0]) == ["id", "image", "conversations", "type"]


def test_real_multiple_choice_questions_come_out_as_they_went_into_the_mix(realdata: Path) -> None:
    pattern = re.compile(rf"<image>\n(.*)\nA\. (.*)\nB\. (.*)\nC\. (.*)\nD\. (.*)\n{LETTER_SENTENCE}")
    found = 0
    for line in (realdata / "mix665k/llava_v1_5_mix1k.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        human, gpt = (turn["value"] for turn in row["conversations"][:2])
        match = pattern.fullmatch(human)
        if match is None or len(set(match.groups()[1:])) < 4:
            continue
        question, *options = match.groups()
        engine = record(instruction=question, options=options, choide_answer=gpt)
        exchange = MODES["mc"].ask(parse_record(engine, 0), 42)
        assert exchange is not None
        assert [turn.text for turn in exchange.turns(opens=True)] == [human, gpt]
        found += 1
    assert found > 80


def test_the_shuffle_is_even_over_all_orders_but_the_first() -> None:
    choice = Choice(("a", "b", "c", "d"), 2)
    draws = 23 * 400
    seen = Counter(shuffled(choice, Random(f"42 {place}")).options for place in range(draws))
    assert len(seen) == 23
    assert choice.options not in seen
    chi_squared = sum((count - 400) ** 2 / 400 for count in seen.values())
    assert chi_squared < 48.3, "22 degrees of freedom: one in a thousand"


def test_the_shuffled_letter_names_the_same_text(tmp_path: Path) -> None:
    rng = Random(0)
    rows = []
    for number in range(300):
        options = [f"option {rng.random()}" for _ in range(rng.randint(2, 26))]
        letter = chr(ord("A") + rng.randrange(len(options)))
        rows.append(record(instruction=f"q{number}", options=options, choide_answer=letter))
    samples, report = convert(tmp_path, rows, modes=("mcp",))
    for row, sample in zip(rows, samples, strict=True):
        human, gpt = (turn["value"] for turn in sample["conversations"])
        correct = row["options"][ord(row["choide_answer"]) - ord("A")]
        assert f"\n{gpt}. {correct}\n" in human
        shown = [line[3:] for line in human.splitlines()[2:-1]]
        assert sorted(shown) == sorted(row["options"])
        assert shown != row["options"]
    assert sum(report["letters"]["mcp"].values()) == 300


# --- settings ---


def _ids(samples: list[dict[str, Any]]) -> list[str]:
    return [sample["id"] for sample in samples]


def test_ids_and_shuffles_do_not_move_when_records_are_left_out(tmp_path: Path) -> None:
    rows = [record(instruction=f"q{place}", qtype=place % 9 + 1) for place in range(27)]
    everything, _ = convert(tmp_path, rows)
    some, report = convert(tmp_path, rows, skills=("4", "Text Understanding"), limit=3)
    assert _ids(some)[::3] == ["engine_da_3", "engine_da_8", "engine_da_12"]
    assert report["used"] == 3
    assert all(sample in everything for sample in some)


def test_two_runs_are_equal_and_another_seed_moves_only_the_shuffle(tmp_path: Path) -> None:
    rows = [record(instruction=f"q{place}") for place in range(40)]
    first, report = convert(tmp_path, rows)
    again, second_report = convert(tmp_path, rows)
    other, _ = convert(tmp_path, rows, seed=43)
    assert first == again
    assert report == second_report
    moved = {a["id"].split("_")[1] for a, b in zip(first, other, strict=True) if a != b}
    assert moved == {"mcp"}


def test_files_are_numbered_through(tmp_path: Path) -> None:
    files = tuple(write(tmp_path / f"{n}.json", [record(instruction=f"q{n}")]) for n in range(3))
    conversion = Conversion(ConversionSettings(engine=files, modes=("da",)), StringIO())
    assert [sample.id for sample in conversion.samples()] == ["engine_da_0", "engine_da_1", "engine_da_2"]


def test_grouping_joins_one_images_questions_and_says_the_suffix_once(tmp_path: Path) -> None:
    rows = [record(instruction=f"q{place}", image=f"{place % 2}.jpg") for place in range(24)]
    samples, report = convert(tmp_path, rows, modes=("da", "mc"), group="image")
    assert _ids(samples) == [
        "engine_da_0",
        "engine_da_20",
        "engine_mc_0",
        "engine_mc_20",
        "engine_da_1",
        "engine_da_21",
        "engine_mc_1",
        "engine_mc_21",
    ]
    assert report["exchanges"] == {"da": 24, "mc": 24}
    assert report["added"] == 8
    texts = [turn["value"] for turn in samples[2]["conversations"]]
    assert len(texts) == 20
    assert [text.count("<image>") for text in texts] == [1] + [0] * 19
    assert [text.count(LETTER_SENTENCE) for text in texts] == [1] + [0] * 19
    assert texts[2].startswith("q2\nA. Top right corner\n")
    for sample in samples:
        parse_sample(sample, "out.json")


def test_missing_images_are_skipped_warned_of_or_refused(tmp_path: Path) -> None:
    rows = [record(instruction=f"q{place}", image=f"{place}.jpg") for place in range(3)]
    (tmp_path / "1.jpg").touch()
    settings: dict[str, Any] = {"modes": ("da",), "image_root": tmp_path}
    samples, report = convert(tmp_path, rows, missing_images="skip", **settings)
    assert _ids(samples) == ["engine_da_1"]
    assert report["reasons"] == {"image_not_found": 2}
    samples, report = convert(tmp_path, rows, missing_images="warn", **settings)
    assert len(samples) == 3
    assert report["reasons"] == {"image_not_found_but_used": 2}
    assert [row["modes_lost"] for row in problems(tmp_path)] == [[], []]
    with raises_code("missing-image", DataError) as error:
        convert(tmp_path, rows, missing_images="error", **settings)
    assert "0.jpg" in str(error.value)
    assert "record 0" in str(error.value)


def test_an_image_name_that_no_disk_can_hold_is_a_missing_image(tmp_path: Path) -> None:
    rows = [record(image="a" * 5000), record(instruction="q", image="b/" * 3000 + "1.jpg")]
    _, report = convert(tmp_path, rows, modes=("da",), image_root=tmp_path)
    assert report["reasons"] == {"image_not_found_but_used": 2}


def test_a_full_disk_names_the_output_and_leaves_nothing(tmp_path: Path) -> None:
    rows = [record(instruction=f"q{place}") for place in range(200)]
    engine = write(tmp_path / "engine.json", rows)
    with files_of_at_most(20_000), pytest.raises(OSError, match="too large") as error:
        convert_files(ConversionSettings(engine=(engine,)), tmp_path / "out.json")
    assert error.value.filename == str(tmp_path / "out.json")
    write(engine, [{"instruction": f"q{place}"} for place in range(2000)])
    with files_of_at_most(20_000), pytest.raises(OSError, match="too large") as error:
        convert_files(ConversionSettings(engine=(engine,)), tmp_path / "out.json")
    assert error.value.filename == str(tmp_path / "out.problems.jsonl")
    assert list(tmp_path.iterdir()) == [engine]


@pytest.mark.parametrize(
    ("settings", "code", "fact"),
    [
        ({"modes": ("da", "xy")}, "unknown-mode", "'xy'"),
        ({"modes": ()}, "repeated-mode", "modes"),
        ({"modes": ("da", "da")}, "repeated-mode", "da,da"),
        ({"limit": 0}, "out-of-range", "limit is 0"),
        ({"group": "skill"}, "unknown-choice", "'skill'"),
        ({"missing_images": "ask"}, "unknown-choice", "'ask'"),
        ({"image_root": Path("nowhere")}, "missing-folder", "nowhere"),
        ({"engine": ()}, "missing-file", "engine records"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], code: str, fact: str) -> None:
    with raises_code(code, SettingsError) as error:
        ConversionSettings(**({"engine": (Path("engine.json"),)} | settings))
    assert fact in str(error.value)


@pytest.mark.parametrize("label", ["10", "0", "Text Understandng", ""])
def test_a_skill_that_does_not_exist_is_refused(label: str) -> None:
    with raises_code("unknown-skill", SettingsError) as error:
        Conversion(ConversionSettings(engine=(Path("engine.json"),), skills=("1", label)), StringIO())
    assert repr(label) in str(error.value)
    assert "1 Scene Understanding" in str(error.value)


# --- properties ---

PIECES = [
    "Where is it?",
    "日本語の質問",
    "עברית",
    "e\u0301\u0301",
    "❤️\U0001f469\u200d\U0001f680",
    "\u202eabc",
    "</p>",
    "USER:",
    "ASSISTANT",
    "\n",
    "\r\n\r\n",
    "  ",
    "\t",
    "A. ",
    "###",
    "\\n",
    '"quoted"',
    "x" * 3000,
    "5",
    "\u00a0",
]


def nasty(rng: Random) -> str:
    return "".join(rng.choices(PIECES, k=rng.randint(1, 6)))


def test_a_sample_names_the_skill_of_its_questions_if_it_is_one(tmp_path: Path) -> None:
    rows = [
        record(instruction=f"{n}?", image=f"{n // 2}.jpg", qtype=kind) for n, kind in enumerate((4, 4, 4, 5))
    ]
    rows.append(record(image="2.jpg", qtype=None))
    apart, _ = convert(tmp_path, rows, modes=("da",))
    assert [row.get("type") for row in apart] == [*["Instance Location"] * 3, "Instances Counting", None]
    together, _ = convert(tmp_path, rows, modes=("da",), group="image")
    assert [row.get("type") for row in together] == ["Instance Location", None, None]


def test_nasty_records_give_samples_that_can_be_trained_on_or_a_reason(tmp_path: Path) -> None:
    rng = Random(1)
    rows = [
        record(
            instruction=nasty(rng),
            answer=nasty(rng),
            short_answer=nasty(rng),
            options=[nasty(rng) for _ in range(rng.randint(1, 6))],
            choide_answer=rng.choice("ABCDEFabc"),
            image=f"{place}.jpg",
        )
        for place in range(400)
    ]
    samples, report = convert(tmp_path, rows, modes=("da", "sa", "mc", "mcp"))
    assert len(samples) > 400
    for sample in samples:
        parsed = parse_sample(sample, "out.json")
        assert sample_to_row(parsed) == sample
        assert all(turn.text == turn.text.strip() for turn in parsed.turns)
    lost = sum(len(row["modes_lost"]) for row in problems(tmp_path))
    assert len(samples) + lost + sum(report["absent"].values()) == 4 * len(rows)


def test_all_of_an_answer_is_trained_on_and_nothing_else(golden: Path, tmp_path: Path) -> None:
    from llava.constants import IGNORE_INDEX
    from llava.conversation import conv_templates
    from llava.prompts.labels import supervise
    from llava.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(golden / "weights/tiny-vicuna-v1.5")
    rng = Random(2)
    rows = [
        record(
            instruction=nasty(rng),
            answer=nasty(rng),
            image=f"{place % 5}.jpg",
            choide_answer="abcd"[place % 4],
        )
        for place in range(60)
    ]
    for group in ("none", "image"):
        samples, _ = convert(tmp_path, rows, modes=("da", "mc", "mcp"), group=group)
        for row in samples:
            sample = parse_sample(row, "out.json")
            made = supervise(sample, conv_templates["v1"], tokenizer, max_length=2048)
            assert made.problem is None
            trained = [label for label in made.labels if label != IGNORE_INDEX]
            answers = [turn.text for turn in sample.turns if turn.speaker == "gpt"]
            wanted = "".join(f"{answer}</s>" for answer in answers)
            assert re.sub(r"\s", "", tokenizer.decode(trained)) == re.sub(r"\s", "", wanted)
