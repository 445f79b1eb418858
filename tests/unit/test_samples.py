"""Records are read as the original reads them, and what it stumbles over is said at once, with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.samples import (
    RecordError,
    group_lengths,
    has_unused_image_token,
    parse_sample,
    read_samples,
    sample_to_row,
)
from llava.schema import Sample, Turn
from support.errors import raises_code

HUMAN = {"from": "human", "value": "<image>\nWhat is it?"}
GPT = {"from": "gpt", "value": "A cat."}
NESTED: list[Any] = []
for _ in range(5000):
    NESTED = [NESTED]


def record(**changes: Any) -> dict[str, Any]:
    """A good record, with changes; a change to None removes the key."""
    row = {"id": 7, "image": "coco/1.jpg", "conversations": [HUMAN, GPT], **changes}
    return {key: value for key, value in row.items() if value is not None}


def said(speaker: Any, value: Any) -> dict[str, Any]:
    return {"from": speaker, "value": value}


def test_a_good_record_is_read_and_written_back() -> None:
    sample = parse_sample(record(), "f.json: record 0")
    assert sample == Sample(7, (Turn("human", "<image>\nWhat is it?"), Turn("gpt", "A cat.")), "coco/1.jpg")
    assert sample_to_row(sample) == record()
    assert list(sample_to_row(sample)) == ["id", "image", "conversations"]


def test_the_question_type_is_kept_and_what_is_none_is_dropped() -> None:
    typed = parse_sample(record(type="Instance Location"), "f")
    assert typed.type == "Instance Location"
    assert sample_to_row(typed) == record(type="Instance Location")
    for other in ("", 4, ["x"]):
        assert sample_to_row(parse_sample(record(type=other), "f")) == record()


def test_text_alone_has_no_key_image() -> None:
    row = {"id": "x", "conversations": [said("human", "Hi"), said("gpt", "Hello")]}
    sample = parse_sample(row, "f")
    assert sample.image is None
    assert sample_to_row(sample) == row


@pytest.mark.parametrize(
    ("row", "code", "fact"),
    [
        ([], "not-a-record", "found list"),
        (record(conversations=None), "no-turns", "conversations is missing"),
        (record(conversations=[]), "no-turns", "conversations is []"),
        (record(conversations="Hi"), "no-turns", "conversations is 'Hi'"),
        (record(conversations=["Hi"]), "bad-turn", "turn 0 is str"),
        (record(conversations=[HUMAN, said("assistant", "x")]), "bad-turn", "turn 1 is from 'assistant'"),
        (record(conversations=[{"value": "x"}]), "bad-turn", "turn 0 is from None"),
        (record(conversations=[HUMAN, said("gpt", None)]), "bad-turn", "turn 1 has the value None"),
        (record(conversations=[HUMAN, said("gpt", 5)]), "bad-turn", "turn 1 has the value 5"),
        (record(conversations=[HUMAN, HUMAN]), "turns-do-not-alternate", "turn 1 is from human"),
        (record(conversations=[HUMAN, GPT, GPT]), "turns-do-not-alternate", "turn 2 is from gpt"),
        (record(conversations=[GPT, GPT]), "turns-do-not-alternate", "turn 1 is from gpt"),
        (
            record(conversations=[HUMAN, said("gpt", "a\ud83d")]),
            "bad-turn",
            "half a surrogate pair at character 1",
        ),
        (record(image=["a.jpg", "b.jpg"]), "bad-image-name", "image is ['a.jpg', 'b.jpg']"),
        (record(image="  "), "bad-image-name", "image is"),
        (record(image="/data/a.jpg"), "bad-image-name", "image is '/data/a.jpg'"),
        (record(image="../a.jpg"), "bad-image-name", "image is '../a.jpg'"),
        (record(image="a\0.jpg"), "bad-image-name", "image is"),
        (record(image="a/" * 5000 + "../" * 5001 + "a.jpg"), "bad-image-name", "image is"),
        (record(conversations=[HUMAN, said("gpt", NESTED)]), "bad-turn", "turn 1 has the value [["),
        (record(conversations=[said(NESTED, "Hi")]), "bad-turn", "turn 0 is from [["),
        (record(conversations={"a": NESTED}), "no-turns", "conversations is"),
        (record(id=NESTED), "bad-id", "id is [["),
        (record(image="a\ud83d.jpg"), "bad-image-name", "image is"),
        ({"id": 7, "image": None, "conversations": [HUMAN, GPT]}, "bad-image-name", "image is None"),
        (record(image=None), "image-token-without-image", "turn 0 contains <image>"),
        (
            record(image=None, conversations=[said("human", "What is it?\n<image> "), GPT]),
            "image-token-without-image",
            "turn 0 contains <image>",
        ),
        (
            record(image=None, conversations=[said("human", "<image>"), GPT]),
            "image-token-without-image",
            "turn 0 contains <image>",
        ),
        (
            record(conversations=[HUMAN, GPT, HUMAN, GPT]),
            "image-token-in-several-turns",
            "<image> is in turns 0, 2",
        ),
        (
            record(conversations=[HUMAN, said("gpt", "see <image>")]),
            "image-token-in-several-turns",
            "<image> is in turns 0, 1",
        ),
        (record(id=[1]), "bad-id", "id is [1]"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_its_place(row: Any, code: str, fact: str) -> None:
    with raises_code(code, RecordError) as error:
        parse_sample(row, "train.json: record 3")
    assert str(error.value).startswith("train.json: record 3")
    assert fact in str(error.value)


def test_the_message_names_the_id() -> None:
    with raises_code("no-turns", RecordError) as error:
        parse_sample({"id": "cat-1"}, "train.json: record 3")
    assert "record 3 (id 'cat-1')" in str(error.value)


@pytest.mark.parametrize(
    "conversations",
    [
        [said("gpt", "I begin"), HUMAN, GPT],
        [said("gpt", "I begin and end")],
        [said("human", "Look at <image> and <image>"), GPT],
        [said("human", "Hi"), said("gpt", "Hello"), HUMAN, GPT],
        [HUMAN, said("gpt", "")],
        [HUMAN, GPT, said("human", "unanswered")],
        [HUMAN | {"markdown": None}, GPT],
    ],
)
def test_what_the_original_takes_is_taken(conversations: list[dict[str, Any]]) -> None:
    sample = parse_sample(record(conversations=conversations, source="web"), "f")
    assert [turn.text for turn in sample.turns] == [turn["value"] for turn in conversations]


@pytest.mark.parametrize(
    "conversations",
    [
        [said("human", "Why is <image> empty in this feed?"), GPT],
        [
            said("human", "Write RSS"),
            said("gpt", "<image>\n<url>x</url>\n</image>"),
            said("human", "<image>?"),
        ],
    ],
)
def test_a_feeds_image_tag_in_text_alone_is_plain_text(conversations: list[dict[str, Any]]) -> None:
    sample = parse_sample(record(image=None, conversations=conversations), "f")
    assert has_unused_image_token(sample)
    assert [turn.text for turn in sample.turns] == [turn["value"] for turn in conversations]
    assert not has_unused_image_token(parse_sample(record(), "f"))


@pytest.mark.parametrize(
    ("given", "kept"), [(7, 7), ("7", "7"), (7.0, 7), (7.5, "7.5"), (None, "f.json: record 4")]
)
def test_ids_keep_their_type_and_a_missing_one_is_the_place(given: Any, kept: Any) -> None:
    row = record() | {"id": given}
    assert parse_sample(row, "f.json: record 4").id == kept
    assert type(parse_sample(row, "f.json: record 4").id) is type(kept)


def test_lengths_count_words_as_the_sampler_of_the_original_does() -> None:
    with_image = parse_sample(record(), "f")
    text = Sample("t", (Turn("human", "a  b\nc"), Turn("gpt", "d")))
    assert group_lengths(with_image) == (6 + 128, 6)
    assert group_lengths(text) == (4, -4)


def test_a_sample_of_no_words_still_tells_its_kind() -> None:
    turns = (Turn("human", ""), Turn("gpt", " "))
    assert group_lengths(Sample("t", turns)) == (0, -1)
    assert group_lengths(Sample("t", turns, "a.jpg")) == (128, 1)


def test_files_are_read_in_order_and_errors_name_the_place(tmp_path: Path) -> None:
    rows = [record(id=number) for number in range(3)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("a.json", "a.jsonl"):
        assert [sample_to_row(sample) for sample in read_samples(tmp_path / name)] == rows
    rows[1]["conversations"] = []
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with raises_code("no-turns", RecordError) as error:
        list(read_samples(tmp_path / "a.json"))
    assert "a.json: record 1 (id 1)" in str(error.value)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with raises_code("no-turns", RecordError) as error:
        list(read_samples(tmp_path / "a.jsonl"))
    assert "a.jsonl:2 (id 1)" in str(error.value)


def test_the_real_mix_reads_and_writes_back_unchanged(realdata: Path) -> None:
    path = realdata / "mix665k/llava_v1_5_mix1k.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [sample_to_row(sample) for sample in read_samples(path)] == rows
    assert len(rows) == 1000
