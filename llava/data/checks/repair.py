"""What of a bad sample can be mended without guessing what was meant; all else is left out.

- The last turn asks and has no answer: it is dropped.
- There is an image and no `<image>`: it opens the first thing that the human says.
- There is an image and `<image>` in several of the human's turns: the first keeps it. An answer that holds it
  as well may mean it as text, so such a sample is not mended.
- The image's file is missing, and there is one file of its name and another image format's suffix: that is
  taken (see image_files.py).
"""

from __future__ import annotations

from dataclasses import replace

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.schema import Sample, Turn

QUESTION_DROPPED = "last question had no answer"
TOKEN_ADDED = "image token was missing"
TOKENS_DROPPED = "image token stood in several turns"


def mend(sample: Sample) -> tuple[Sample, tuple[str, ...]]:
    """The sample with all mended that can be, and what was; the sample itself if nothing was."""
    turns = list(sample.turns)
    mended: list[str] = []
    if len(turns) > 1 and turns[-1].speaker == "human":
        turns.pop()
        mended.append(QUESTION_DROPPED)
    if sample.image is not None:
        places = [place for place, turn in enumerate(turns) if DEFAULT_IMAGE_TOKEN in turn.text]
        asked = [place for place, turn in enumerate(turns) if turn.speaker == "human"]
        if not places and asked:
            turns[asked[0]] = Turn("human", f"{DEFAULT_IMAGE_TOKEN}\n{turns[asked[0]].text}")
            mended.append(TOKEN_ADDED)
        elif len(places) > 1:
            if not set(places) <= set(asked):
                return sample, ()
            for place in places[1:]:
                turns[place] = Turn("human", turns[place].text.replace(DEFAULT_IMAGE_TOKEN, "").strip())
            mended.append(TOKENS_DROPPED)
    return (replace(sample, turns=tuple(turns)) if mended else sample), tuple(mended)
