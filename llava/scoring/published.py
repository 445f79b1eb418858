"""Published scores of LLaVA-1.5 and MLLM-DataEngine, as their sources print them.

The key BENCHMARK is the headline of metrics.json, BENCHMARK/SCORE another score: "mme" is MME's perception,
"scienceqa" the questions with an image, "seed" the image questions.

Sources: LLaVA docs/MODEL_ZOO.md and the MLLM-DataEngine README (7B with LoRA, trained on mix665k). MODEL_ZOO
has SEED over images and video (61.6 for 13B); 68.2, its image part, is of the LLaVA-1.5 paper.
"""

from __future__ import annotations

DATA_ENGINE_BASELINE = "DataEngine baseline 7B LoRA"
DATA_ENGINE = "DataEngine 7B LoRA + engine data"
LLAVA_LORA = "LLaVA-1.5-7B LoRA"
PUBLISHED: dict[str, dict[str, str]] = {
    "LLaVA-1.5-7B": {
        "vqav2": "78.5", "gqa": "62.0", "vizwiz": "50.0", "scienceqa": "66.8", "textvqa": "58.2",
        "pope": "85.9", "mme": "1510.7", "mmbench": "64.3", "mmbench_cn": "58.3", "llava_bench": "65.4",
        "mmvet": "31.1",
    },
    LLAVA_LORA: {
        "vqav2": "79.1", "gqa": "63.0", "vizwiz": "47.8", "scienceqa": "68.4", "textvqa": "58.2",
        "pope": "86.4", "mme": "1476.9", "mmbench": "66.1", "mmbench_cn": "58.9", "llava_bench": "67.9",
        "mmvet": "30.2",
    },
    "LLaVA-1.5-13B": {
        "vqav2": "80.0", "gqa": "63.3", "vizwiz": "53.6", "scienceqa": "71.6", "textvqa": "61.3",
        "pope": "85.9", "mme": "1531.3", "mmbench": "67.7", "mmbench_cn": "63.6", "llava_bench": "72.5",
        "mmvet": "36.1", "seed": "68.2",
    },
    DATA_ENGINE_BASELINE: {
        "seed": "66.04", "mmbench": "66.66", "mme": "1475", "mme/cognition": "290", "gqa": "57.27",
        "vqav2": "77.56", "scienceqa": "68.27", "scienceqa/ALL": "70.67",
    },
    DATA_ENGINE: {
        "seed": "68.57", "mmbench": "67.18", "mme": "1511", "mme/cognition": "303", "gqa": "58.02",
        "vqav2": "78.18", "scienceqa": "71.15", "scienceqa/ALL": "73.17",
    },
}  # fmt: skip
