"""Repair bad samples where the intended text is certain; all others are left out.

- The last turn is a question without an answer: it is dropped.
- There is an image but no `<image>`: it is put before the first human turn.
- There is an image and `<image>` in several human turns: only the first keeps it. An answer that holds it may
  mean it as text, so such a sample is not repaired.
- The image file is missing, and exactly one file has its name and another image suffix: that file is used
  (see image_files.py).
"""

from __future__ import annotations

from dataclasses import replace

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.schema import Sample, Turn

QUESTION_DROPPED = "last question had no answer"
TOKEN_ADDED = "image token was missing"
TOKENS_DROPPED = "image token stood in several turns"


def repair_sample(sample: Sample) -> tuple[Sample, tuple[str, ...]]:
    """Return the repaired sample and the kinds of repair; the sample itself if there is none."""
    turns = list(sample.turns)
    repairs: list[str] = []
    if len(turns) > 1 and turns[-1].speaker == "human":
        turns.pop()
        repairs.append(QUESTION_DROPPED)
    if sample.image is not None:
        with_token = [number for number, turn in enumerate(turns) if DEFAULT_IMAGE_TOKEN in turn.text]
        human = [number for number, turn in enumerate(turns) if turn.speaker == "human"]
        if not with_token and human:
            turns[human[0]] = Turn("human", f"{DEFAULT_IMAGE_TOKEN}\n{turns[human[0]].text}")
            repairs.append(TOKEN_ADDED)
        elif len(with_token) > 1:
            if not set(with_token) <= set(human):
                return sample, ()
            for number in with_token[1:]:
                turns[number] = Turn("human", turns[number].text.replace(DEFAULT_IMAGE_TOKEN, "").strip())
            repairs.append(TOKENS_DROPPED)
    return (replace(sample, turns=tuple(turns)) if repairs else sample), tuple(repairs)
