"""torchrun, as the scripts start it: its exit code is the run's own, and it shows no traceback of itself.

python -m llava.train.launch --nproc_per_node 2 llava/train/train_mem.py FLAGS...
"""

from __future__ import annotations

import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> None:
    """Run torchrun; leave as the process did that failed first, or as shells do for a signal (130, 143)."""
    try:
        run.main()
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)


if __name__ == "__main__":
    main()
