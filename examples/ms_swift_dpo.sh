#!/usr/bin/env bash
# ms-swift 4.6: DPO on the preferences of a run.
#   fgaif export preferences runs/pairs --config my.yaml --format ms-swift
#   examples/ms_swift_dpo.sh
set -euo pipefail
PAIRS=${PAIRS:-runs/pairs}
[ -e "$PAIRS/train.jsonl" ] || { echo "$PAIRS/train.jsonl is not there: see the first lines of $0" >&2; exit 2; }

swift rlhf \
    --rlhf_type dpo \
    --model "${MODEL:-Qwen/Qwen2.5-VL-3B-Instruct}" \
    --dataset "$PAIRS/train.jsonl" \
    --tuner_type lora \
    --lora_rank 64 \
    --torch_dtype bfloat16 \
    --beta 0.1 \
    --max_length 2048 \
    --learning_rate 1e-5 \
    --num_train_epochs 1 \
    --per_device_train_batch_size 1 \
    --gradient_accumulation_steps 8 \
    --output_dir runs/ms-swift \
    "$@"
