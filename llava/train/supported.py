"""Refuse combinations of ZeRO stages, quantization and FSDP that are not supported.

scripts/v1_5/DISTRIBUTED.md has it as a table for users, and a test holds that against what happens.
"""

from __future__ import annotations

from collections.abc import Iterator

from llava.schema import JsonObject

_IN_PARTS = "quantised weights are not shared out in parts"
# What transformers makes of `--fsdp True` alone: FSDP2 with a unit for each decoder layer.
FSDP2: JsonObject = {
    "fsdp_version": 2,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "cpu_ram_efficient_loading": False,
    "state_dict_type": "FULL_STATE_DICT",
    "reshard_after_forward": True,
}


def unsupported(*, bits: int, fsdp: JsonObject | None, deepspeed: JsonObject | None) -> Iterator[str]:
    """Yield one message per unsupported setting, with the reason and what to use instead.

    Args:
        bits: 16, or 4 or 8 for a quantised base.
        fsdp: What --fsdp and --fsdp_config ask accelerate for; None without them.
        deepspeed: What the file named by --deepspeed holds; None without it.
    """
    if fsdp is not None and fsdp != FSDP2:
        changed = [f"{name} {value}" for name, value in fsdp.items() if value != FSDP2.get(name)]
        yield f"--fsdp_config: {', '.join(changed)} is not tested here; give --fsdp True alone"
    if fsdp is not None and bits in (4, 8):
        yield f"--bits {bits} under FSDP: {_IN_PARTS}; use --deepspeed scripts/zero2.json"
    if deepspeed is None:
        return
    stage = deepspeed.get("zero_optimization", {}).get("stage", 0)
    if stage not in (2, 3):
        yield f"--deepspeed: ZeRO stage {stage} is not tested here; use scripts/zero2.json or zero3.json"
    if stage == 3 and bits in (4, 8):
        yield f"--bits {bits} under ZeRO-3: {_IN_PARTS}; use --deepspeed scripts/zero2.json"
    for entry in ("optimizer", "scheduler"):
        # The original's zero3_offload.json has both: a constant rate, and none of its own for the projector.
        if entry in deepspeed:
            yield f"--deepspeed: its entry {entry!r} would replace what the flags ask for; remove it"
