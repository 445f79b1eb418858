"""MMBench dev in Chinese (20231003): MMBench's rules on another TSV, and a Chinese sentence that asks."""

from __future__ import annotations

from llava.benchmarks.tasks.mmbench import make
from llava.prompts.wording import LETTER_SUFFIX_CN as LETTER_CN

__all__ = ["BENCHMARK", "LETTER_CN"]

BENCHMARK = make(
    "mmbench_cn",
    "MMBench (Chinese)",
    ("dev_cn_20231003", "test_cn_20231003"),
    LETTER_CN,
)
