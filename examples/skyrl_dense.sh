#!/usr/bin/env bash
# SkyRL 0.4: REINFORCE++ with a reward at the end of every segment. GRPO and RLOO of SkyRL add the rewards of a response
# up first, which loses where they stand; GAE wants a critic, which newer versions refuse beside images.
#   FGAIF_REWARD_URL=http://HOST:PORT examples/skyrl_dense.sh
set -euo pipefail
: "${FGAIF_REWARD_URL:?set it to the root of the reward service}"
MODEL=${MODEL:-Qwen/Qwen3-VL-2B-Instruct}
DATA=${DATA:-runs/skyrl-data}
[ -e "$DATA/train.parquet" ] || python examples/trainer_data.py skyrl "$DATA"

python examples/skyrl_rewards.py \
    data.train_data="['$DATA/train.parquet']" \
    data.val_data="['$DATA/train.parquet']" \
    environment.env_class=one_answer \
    generator.vision_language_generator=true \
    generator.step_wise_trajectories=false \
    generator.batched=false \
    generator.max_turns=1 \
    generator.n_samples_per_prompt=4 \
    generator.sampling_params.max_generate_length=512 \
    generator.inference_engine.num_engines="${GPUS:-1}" \
    generator.inference_engine.gpu_memory_utilization=0.5 \
    trainer.algorithm.advantage_estimator=reinforce++ \
    trainer.policy.model.path="$MODEL" \
    trainer.policy.optimizer_config.lr=1e-6 \
    trainer.placement.policy_num_gpus_per_node="${GPUS:-1}" \
    trainer.placement.ref_num_gpus_per_node="${GPUS:-1}" \
    trainer.remove_microbatch_padding=false \
    trainer.train_batch_size=64 \
    trainer.policy_mini_batch_size=32 \
    trainer.max_prompt_length=1024 \
    trainer.eval_before_train=false \
    trainer.eval_interval=-1 \
    trainer.logger=console \
    trainer.project_name=fgaif \
    trainer.run_name=skyrl \
    "$@"
