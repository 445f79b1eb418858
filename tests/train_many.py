"""Trains several runs one after the other in one start of processes; a program that tests start.

python [-m torch.distributed.run --nproc_per_node 2] tests/train_many.py JOBS ERRORS
    JOBS    JSON: {name of a run: its flags}
    ERRORS  JSON, written at the end: {name of a run that was refused: why}
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from llava.errors import SettingsError
from llava.train.train import quiet_libraries, train


def main() -> None:
    quiet_libraries()
    jobs, written = (Path(word) for word in sys.argv[1:])
    errors: dict[str, str] = {}
    for name, argv in json.loads(jobs.read_text()).items():
        try:
            train(argv=argv)
        except SettingsError as error:
            errors[name] = str(error)
        # What a process remembers of its run; the connection to the others stays.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        unset_hf_deepspeed_config()
    if os.environ.get("RANK", "0") == "0":
        written.write_text(json.dumps(errors))


if __name__ == "__main__":
    main()
