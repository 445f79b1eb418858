#!/usr/bin/env bash
# vizwiz.sh for a LoRA adapter.
#
#   bash scripts/v1_5/eval/vizwiz_lora.sh MODEL_PATH MODEL_NAME
#   bash scripts/v1_5/eval/vizwiz_lora.sh ./checkpoints/llava-v1.5-7b-lora llava-v1.5-7b-lora
#
# Settings: MODEL_BASE, what the adapter is applied to (default: the base that its adapter_config.json names), and those
# of _common.sh. Writes what vizwiz.sh writes.
set -euo pipefail
# shellcheck source=scripts/v1_5/eval/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
want_arguments 2 2 "$@"
evaluate vizwiz "$@"
