"""Turns what finetune.sh left into what is committed: fp16 weights without the tower, config, tokenizer."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from llava.files import read_json, write_json

COPIED = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
_TOWER = "model.vision_tower."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tuned", type=Path, required=True, help="what finetune.sh wrote")
    parser.add_argument("--tower", required=True, help="the tower's folder, as config.json shall name it")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    weights = load_file(args.tuned / "model.safetensors")
    kept = {name: value.to(torch.float16) for name, value in weights.items() if not name.startswith(_TOWER)}
    save_file(kept, args.out / "model.safetensors", metadata={"format": "pt"})
    (args.out / "model.safetensors").chmod(0o644)
    config = read_json(args.tuned / "config.json")
    config |= {"dtype": "float16", "torch_dtype": "float16", "mm_vision_tower": args.tower}
    config.pop("_name_or_path", None)
    write_json(args.out / "config.json", config)
    for name in COPIED:
        if (args.tuned / name).is_file():
            shutil.copyfile(args.tuned / name, args.out / name)


if __name__ == "__main__":
    main()
