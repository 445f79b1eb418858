"""MMBench dev in Chinese (20231003): MMBench's rules with a Chinese TSV and instruction."""

from __future__ import annotations

from llava.benchmarks.tasks.mmbench import make_mmbench
from llava.prompts.wording import LETTER_SUFFIX_CN as LETTER_CN

__all__ = ["BENCHMARK", "LETTER_CN"]

BENCHMARK = make_mmbench(
    "mmbench_cn",
    "MMBench (Chinese)",
    ("dev_cn_20231003", "test_cn_20231003"),
    LETTER_CN,
)
