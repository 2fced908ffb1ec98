#!/usr/bin/env bash
# verl 0.9: GRPO with the rewards of the service. Change MODEL, the data and the numbers of GPUs.
#   FGAIF_REWARD_URL=http://HOST:PORT examples/verl_grpo.sh
set -euo pipefail
: "${FGAIF_REWARD_URL:?set it to the root of the reward service}"
MODEL=${MODEL:-Qwen/Qwen2.5-VL-3B-Instruct}
DATA=${DATA:-runs/verl-data}
[ -e "$DATA/train.parquet" ] || python examples/trainer_data.py verl "$DATA"

python -m verl.trainer.main_ppo \
    algorithm.adv_estimator=grpo \
    data.train_files="$DATA/train.parquet" \
    data.val_files="$DATA/train.parquet" \
    data.image_key=images \
    data.train_batch_size=64 \
    data.max_prompt_length=1024 \
    data.max_response_length=512 \
    data.filter_overlong_prompts=true \
    reward.custom_reward_function.path=examples/verl_reward.py \
    actor_rollout_ref.model.path="$MODEL" \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.ppo_mini_batch_size=32 \
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4 \
    actor_rollout_ref.actor.use_kl_loss=true \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.5 \
    actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8 \
    actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8 \
    trainer.n_gpus_per_node="${GPUS:-1}" \
    trainer.nnodes=1 \
    trainer.total_epochs=1 \
    trainer.project_name=fgaif \
    trainer.experiment_name=verl \
    'trainer.logger=["console"]' \
    "$@"
