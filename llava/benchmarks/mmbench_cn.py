"""MMBench dev in Chinese (20231003): MMBench's rules on another TSV, and a Chinese sentence that asks."""

from __future__ import annotations

from llava.benchmarks.mmbench import make

LETTER_CN = "请直接回答选项字母。"

BENCHMARK = make(
    "mmbench_cn",
    "MMBench dev (Chinese)",
    "mmbench_cn",
    "dev_cn_20231003",
    "mmbench_dev_cn_20231003.tsv",
    LETTER_CN,
)
