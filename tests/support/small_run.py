"""The shipped configuration with so little of everything that the whole loop takes minutes."""

SMALL = (
    "ray.object_store_gib=0.2",
    "data.sample_images=48",
    "data.align_images=16",
    "data.evaluate_images=6",
    "sample.engine.kv_cache_gib=0.2",
    "label.batch_size=24",
    "label.extractor.engine.kv_cache_gib=0.2",
    "label.verifier.engine.kv_cache_gib=0.2",
    "rewards.epochs=1",
    "rewards.num_workers=1",
    "align.num_workers=1",
    "align.steps=2",
    "align.rollout_batch_size=16",
    "align.ppo.minibatch_size=8",
    "align.ppo.micro_batch_size=8",
    "align.checkpoint_every=1",
    "align.rollout.engine.kv_cache_gib=0.2",
    "evaluate.max_tokens=48",
    "evaluate.engine.kv_cache_gib=0.2",
    "report.examples=3",
)
