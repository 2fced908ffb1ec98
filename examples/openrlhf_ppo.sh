#!/usr/bin/env bash
# OpenRLHF 0.11: RLOO with the rewards of the service (with images it has no critic). Change POLICY, the data and the
# numbers of GPUs.
#   FGAIF_REWARD_URL=http://HOST:PORT examples/openrlhf_ppo.sh
set -euo pipefail
: "${FGAIF_REWARD_URL:?set it to the root of the reward service}"
export POLICY=${POLICY:-Qwen/Qwen2.5-VL-3B-Instruct} # examples/openrlhf_reward.py reads it
DATA=${DATA:-runs/openrlhf-data}
[ -e "$DATA/train.jsonl" ] || python examples/trainer_data.py openrlhf "$DATA"

python -m openrlhf.cli.train_ppo_ray \
    --actor.model_name_or_path "$POLICY" \
    --actor.num_gpus_per_node "${GPUS:-1}" \
    --actor.gradient_checkpointing_enable \
    --ref.num_gpus_per_node "${GPUS:-1}" \
    --vllm.num_engines "${GPUS:-1}" \
    --vllm.gpu_memory_utilization 0.5 \
    --train.colocate_all \
    --vllm.enable_sleep \
    --ds.enable_sleep \
    --algo.advantage.estimator rloo \
    --rollout.batch_size 64 \
    --rollout.n_samples_per_prompt 8 \
    --rollout.max_new_tokens 512 \
    --train.batch_size 64 \
    --train.micro_batch_size 4 \
    --data.prompt_dataset "$DATA/train.jsonl" \
    --data.input_key prompt \
    --data.apply_chat_template \
    --data.image_key images \
    --data.max_images_per_prompt 1 \
    --data.label_key reference \
    --reward.remote_url examples/openrlhf_reward.py \
    --ckpt.output_dir runs/openrlhf \
    "$@"
