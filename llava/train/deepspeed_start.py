"""DeepSpeed before a run: it needs a launcher, and some help where there is no GPU."""

from __future__ import annotations

import importlib.util
import os

from llava.schema import JsonObject


def no_launcher() -> str | None:
    """Why --deepspeed cannot work here: it is not installed, or this process is none of a launcher's."""
    if importlib.util.find_spec("deepspeed") is None:
        return "--deepspeed: DeepSpeed is not installed; pip install deepspeed, or leave it out"
    if "RANK" not in os.environ:
        return "--deepspeed needs a launcher: start by `deepspeed` or `torchrun`, or leave it out"
    return None


def meet_on_cpu(config: JsonObject) -> None:
    """Connect the processes of a run on the CPU, as transformers does itself on GPUs.

    Without it ZeRO-3 takes every process for the only one.

    Args:
        config: What the file named by --deepspeed holds; changed so that nothing is compiled.
    """
    from deepspeed import init_distributed, ops

    # Of the kernels that DeepSpeed would compile here, one serves inference alone, the other offloading from
    # GPUs. And a start that is killed while it compiles leaves a lock that every later one waits for.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    config["zero_force_ds_cpu_optimizer"] = False
    init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
