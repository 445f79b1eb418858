"""Text as nasty as users' data, the same on every machine: runs of spaces, stray marks, odd Unicode."""

from __future__ import annotations

import hashlib
import json
import random

PLAIN = [
    "a",
    "b",
    "5",
    "hello",
    " world",
    "xyzzy",
    "foo",
    ".",
    " .",
    ",",
    "'s",
    "USER:",
    " ASSISTANT: ",
    "ASSISTANT:",
]
SPACES = [
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "\r",
    "▁",
    "▁▁",
    "\u00a0",
    "\u3000",
    "\u2028",
    "\x0b",
    "\x85",
]
MARKS = [
    "</s>",
    "<s>",
    "<unk>",
    "<image>",
    "[PAD]",
    "<im_patch>",
    "<im_start>",
    "<0x0A>",
    "<",
    "s>",
    "/",
    "###",
]
UNICODE = [
    "é",
    "e\u0301",
    "中",
    "文",
    "😀",
    "👨\u200d👩\u200d👧",
    "👍🏽",
    "\u200b",
    "\ufeff",
    "\x00",
    "\x7f",
    "ﬁ",
    "①",
    "Ｋ",
    "שלום",
    "ไทย",
    "각",
    "ﷺ",
]
ATOMS = PLAIN + SPACES + MARKS + UNICODE

# One of each thing that has gone wrong somewhere, short enough to read.
CASES = [
    "",
    " ",
    "  ",
    "▁",
    "▁▁a",
    " a",
    "a ",
    "  a  b  ",
    "\n",
    " \n",
    "a\r\nb",
    "\t\tx",
    "double  space  inside",
    "</s>",
    "</s> ",
    " </s>",
    "</s>USER: hi",
    "</s> USER: hi",
    "a </s> b",
    "a</s>b</s>",
    "<s></s><unk>",
    "x<unk>y",
    " <unk> ",
    "<0x41>",
    "\x00a",
    "a\u200bb",
    "👨\u200d👩\u200d👧",
    "e\u0301",
    "中文 字",
    "\ufeffa",
    "\u00a0a",
    "5",
    " 5",
    "12345",
    "3.14e-10",
    "def f(x):\n    return x\n\n\n\tpass",
    "<|im_start|>user\nhi<|im_end|><|im_start|>",
    "[INST] <<SYS>>\nx\n<</SYS>>\n\ny [/INST]",
    "### Human: x\n### ",
    "a" * 300,
    " " * 70,
    "\n" * 40,
    "</s" * 9,
]


def nasty_strings(count: int, seed: int = 7) -> list[str]:
    """`count` strings, half of them joined from ATOMS and half of random code points."""
    rng = random.Random(seed)  # only random() is promised to stay the same between Pythons

    def below(limit: int) -> int:
        return int(rng.random() * limit)

    def code_point() -> str:
        low, high = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)][
            below(5)
        ]
        return chr(low + below(high - low))

    strings = []
    for place in range(count):
        length = 1 + below(14)
        if place % 2:
            strings.append("".join(code_point() for _ in range(length)))
        else:
            strings.append("".join(ATOMS[below(len(ATOMS))] for _ in range(length)))
    return strings


def digest(value: object) -> str:
    """A short fingerprint of what JSON can write."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
