"""Held-out data: whole images, the same every time; losses by kind of question as computed by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from llava.data.held_out import is_held_out, split
from llava.prompts.kinds import CONVERSATION, FORMS, LETTER, SHORT, TEXT_ONLY, form_of, kinds
from llava.prompts.wording import LETTER_SUFFIX, SHORT_SUFFIX
from llava.samples import read_samples
from llava.schema import Sample, Turn


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


def test_images_are_held_out_whole_and_the_same_ones_every_time() -> None:
    rows = [(f"coco/{n % 2000}.jpg" if n % 5 else None, n) for n in range(10_000)]
    learned, held = split(rows, fraction=0.1, seed=42)
    assert sorted(learned + held) == list(range(10_000))
    assert 850 < len(held) < 1150
    assert not {rows[n][0] for n in learned} & {rows[n][0] for n in held} - {None}
    assert any(rows[n][0] is None for n in held)
    assert (learned, held) == split(rows, fraction=0.1, seed=42)
    assert held != split(rows, fraction=0.1, seed=43)[1]
    # Whatever else there is, and with more held out.
    assert all(is_held_out(*rows[n], fraction=0.2, seed=42) for n in held)
    assert is_held_out("./a.jpg", 1, fraction=0.5, seed=3) == is_held_out("a.jpg", 2, fraction=0.5, seed=3)


def test_none_or_all_may_be_held_out() -> None:
    rows = [("a.jpg", n) for n in range(3)]
    assert split(rows, fraction=0.0, seed=0) == ([0, 1, 2], [])
    assert split(rows, fraction=1.0, seed=0) == ([], [0, 1, 2])
