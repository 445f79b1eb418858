# shellcheck shell=bash
# Shared by the training scripts of LLaVA-1.5: common flags, and the start of a run. Source it; do not run it.
#
# Settings (environment variables; flags after a script's name win over them):
#   MODEL                  language model, or LLaVA model, to start from: folder or hub id
#   VISION_TOWER           CLIP tower: folder or hub id         [openai/clip-vit-large-patch14-336]
#   DATA_PATH              JSON file of conversations
#   IMAGE_FOLDER           folder that the records' image paths start from
#   PROJECTOR              stage-1 projector: file or hub id; empty if MODEL has one inside
#   INIT_ADAPTER           LoRA run to train further on new data, with its projector; PROJECTOR is then unused
#   OUTPUT_DIR             where checkpoints and the result go; an interrupted run resumes from the last one there
#   PER_DEVICE_BATCH       samples per device and forward pass
#   GRADIENT_ACCUMULATION  forward passes per optimizer step    [1]
#   NPROC                  processes on a machine, one per GPU  [all visible GPUs, or 1]
#   PYTHON                 interpreter                          [python]
#   MASTER_PORT            port the processes meet at           [a free one; 29500 on several machines]
#
# On several machines, with the same files under the same paths on all of them, one of:
#   NNODES, NODE_RANK, MASTER_ADDR   how many machines, which of them this is (from 0), and the name or address of
#                          machine 0: start the script on each of them. Under Slurm see slurm.sh.
#   HOSTFILE               DeepSpeed's list of machines, a line `name slots=8` for each: start the script on one of
#                          them, and it reaches the others by pdsh and ssh without a password; or, with NODE_RANK
#                          and MASTER_ADDR, on each of them, without pdsh.
#
# The published results come from 8 GPUs. With others, keep machines x NPROC x PER_DEVICE_BATCH x
# GRADIENT_ACCUMULATION. What goes together (LoRA, full, 4 bit, ZeRO, ...) is in DISTRIBUTED.md beside this file.

# shellcheck source=scripts/_help.sh
source "$(dirname "${BASH_SOURCE[0]}")/../_help.sh"
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PYTHON=${PYTHON:-python}
command -v "$PYTHON" >/dev/null || die "$PYTHON: no such program; set PYTHON to an interpreter"
export PYTHONPATH="$REPO${PYTHONPATH:+:$PYTHONPATH}"

# projector SIZE: print our own stage-1 projector if it exists, else the published one on the hub (7b or 13b).
projector() {
    [[ -z ${INIT_ADAPTER:-} ]] || return 0  # an adapter has its own
    local own=./checkpoints/llava-v1.5-$1-pretrain/mm_projector.bin
    if [[ -f $own ]]; then
        echo "$own"
    else
        echo "liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-$1-v1.5"
    fi
}

# train ZERO_STAGE [FLAG...]: start llava/train/train_mem.py with DeepSpeed on GPUs where it is installed, else with
# torchrun for several processes, else with Python. All train the same model. Does not return.
train() {
    local stage=$1
    shift
    # Rows have many lengths: fixed segments of the GPU's memory would leave gaps.
    export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}
    # exec, so that a signal to the script reaches the run.
    exec "$PYTHON" -m llava.train.launch "$stage" \
        --init_adapter "${INIT_ADAPTER:-}" \
        --vision_tower "${VISION_TOWER:-openai/clip-vit-large-patch14-336}" \
        --mm_vision_select_layer -2 \
        --mm_use_im_start_end False \
        --mm_use_im_patch_token False \
        --bf16 True \
        --tf32 True \
        --num_train_epochs 1 \
        --per_device_eval_batch_size 4 \
        --gradient_accumulation_steps "${GRADIENT_ACCUMULATION:-1}" \
        --evaluation_strategy no \
        --save_strategy steps \
        --save_total_limit 1 \
        --weight_decay 0. \
        --warmup_ratio 0.03 \
        --lr_scheduler_type cosine \
        --logging_steps 1 \
        --model_max_length 2048 \
        --gradient_checkpointing True \
        --dataloader_num_workers 4 \
        --lazy_preprocess True \
        "$@"
}
