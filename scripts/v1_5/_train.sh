# shellcheck shell=bash
# What all training scripts of LLaVA-1.5 share: the flags, and how a run is started. Sourced by them, never run.
#
# Settings (environment variables; flags after a script's name win over them):
#   MODEL                  language model, or LLaVA model, to start from: folder or hub id
#   VISION_TOWER           CLIP tower: folder or hub id         [openai/clip-vit-large-patch14-336]
#   DATA_PATH              JSON file of conversations
#   IMAGE_FOLDER           folder that the records' image paths start from
#   PROJECTOR              stage-1 projector: file or hub id; empty if MODEL has one inside
#   INIT_ADAPTER           LoRA run to go on with on new data, its projector included; PROJECTOR is not used then
#   OUTPUT_DIR             where checkpoints and the result go; a run that was cut off goes on from the last one there
#   PER_DEVICE_BATCH       samples per device and forward pass
#   GRADIENT_ACCUMULATION  forward passes per optimizer step    [1]
#   NPROC                  processes, one per GPU               [all visible GPUs, or 1]
#   PYTHON                 interpreter                          [python]
#   MASTER_PORT            port the processes meet at           [a free one]
#
# The published results come from 8 GPUs. With fewer, keep NPROC x PER_DEVICE_BATCH x GRADIENT_ACCUMULATION.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PYTHON=${PYTHON:-python}
export PYTHONPATH="$REPO${PYTHONPATH:+:$PYTHONPATH}"

# projector SIZE: our own stage-1 projector if there is one, else the published one of the hub (7b or 13b).
projector() {
    [[ -z ${INIT_ADAPTER:-} ]] || return 0  # it has one
    local own=./checkpoints/llava-v1.5-$1-pretrain/mm_projector.bin
    if [[ -f $own ]]; then
        echo "$own"
    else
        echo "liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-$1-v1.5"
    fi
}

# train ZERO_STAGE [FLAG...]: start llava/train/train_mem.py by deepspeed on GPUs where it is installed, else by
# torchrun for several processes, else by Python. What is learned is the same.
train() {
    local stage=$1 facts gpus has_deepspeed port processes
    shift
    facts=$("$PYTHON" - <<'PY'
import importlib.util, socket
import torch

with socket.socket() as free:
    free.bind(("", 0))
    print(torch.cuda.device_count(), int(importlib.util.find_spec("deepspeed") is not None), free.getsockname()[1])
PY
    )
    read -r gpus has_deepspeed port <<<"$facts"
    port=${MASTER_PORT:-$port}
    processes=${NPROC:-$((gpus > 0 ? gpus : 1))}
    if ((gpus > 0 && processes > gpus)); then
        echo "error: NPROC is $processes, but there are $gpus visible GPUs" >&2
        return 2
    fi

    local start=("$PYTHON") zero=()
    if ((gpus > 0 && has_deepspeed)); then
        start=("$PYTHON" -m deepspeed.launcher.runner --master_port "$port")
        if [[ -n ${NPROC:-} && -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
            # DeepSpeed given a number takes the machine's first GPUs, whichever are visible; without, the visible ones.
            CUDA_VISIBLE_DEVICES=$(cut -d, -f "1-$NPROC" <<<"$CUDA_VISIBLE_DEVICES")
            export CUDA_VISIBLE_DEVICES
        elif [[ -n ${NPROC:-} ]]; then
            start+=(--num_gpus "$NPROC")
        fi
        zero=(--deepspeed "$REPO/scripts/zero$stage.json")
    elif ((processes > 1)); then
        start=("$PYTHON" -m llava.train.launch --nproc_per_node "$processes" --master_port "$port")
    fi
    # Slurm's --signal=USR1@300 comes before its time limit: torchrun passes on what is listed, and what does not know
    # it (deepspeed's launcher) must not die of it. Training itself saves a checkpoint and leaves.
    export TORCHELASTIC_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
    trap '' USR1
    # Not as a child: what is sent to the script is sent to the run.
    exec "${start[@]}" "$REPO/llava/train/train_mem.py" "${zero[@]}" \
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
