#!/usr/bin/env bash
# EasyR1 0.3: GRPO with the rewards of the service. EASYR1 is its checkout, whose configuration this one starts from.
#   EASYR1=~/EasyR1 FGAIF_REWARD_URL=http://HOST:PORT examples/easyr1_grpo.sh
set -euo pipefail
: "${FGAIF_REWARD_URL:?set it to the root of the reward service}"
: "${EASYR1:?set it to a checkout of EasyR1}"
MODEL=${MODEL:-Qwen/Qwen2.5-VL-3B-Instruct}
DATA=${DATA:-runs/easyr1-data}
[ -e "$DATA/train.parquet" ] || python examples/trainer_data.py easyr1 "$DATA"

python -m verl.trainer.main \
    config="$EASYR1/examples/config.yaml" \
    data.train_files="$DATA/train.parquet" \
    data.val_files="$DATA/train.parquet" \
    data.prompt_key=problem \
    data.image_key=images \
    data.answer_key=reference \
    data.format_prompt=null \
    data.rollout_batch_size=64 \
    data.max_response_length=512 \
    worker.actor.model.model_path="$MODEL" \
    worker.actor.global_batch_size=32 \
    worker.rollout.n=8 \
    worker.rollout.tensor_parallel_size=1 \
    worker.reward.reward_function=examples/easyr1_reward.py:compute_score \
    trainer.n_gpus_per_node="${GPUS:-1}" \
    trainer.project_name=fgaif \
    trainer.experiment_name=easyr1 \
    'trainer.logger=["console"]' \
    "$@"
