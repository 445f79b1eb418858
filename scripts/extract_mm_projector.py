"""COMMAND: copy the projector out of a checkpoint, as the mm_projector.bin that fine-tuning starts from."""

from __future__ import annotations

import argparse
from pathlib import Path

from llava.command import run
from llava.files import require_distinct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-path", required=True, help="folder or hub id of a checkpoint of any kind")
    parser.add_argument("--output", required=True, type=Path, help="the file to write, mm_projector.bin say")
    args = parser.parse_args()

    from llava.model.loading.checkpoint import (
        extract_projector,
        write_projector_file,
    )  # after the flags: --help needs no torch
    from llava.model.loading.locate import locate

    folder = locate(args.model_path)
    require_distinct((args.output,), list(folder.iterdir()))
    write_projector_file(args.output, extract_projector(folder))


if __name__ == "__main__":
    run(main)
