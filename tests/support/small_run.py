"""The shipped configuration with so little of everything that the whole loop takes minutes."""

SAMPLED = 24
"""Images whose responses are labelled."""
EVALUATED = 6
"""Images that are answered before and after alignment."""
SMALL = (
    "ray.object_store_gib=0.2",
    f"data.sample_images={SAMPLED}",
    "data.align_images=8",
    f"data.evaluate_images={EVALUATED}",
    "sample.max_tokens=48",
    "sample.engine.kv_cache_gib=0.2",
    "label.batch_size=12",
    "label.extractor.engine.kv_cache_gib=0.2",
    "label.verifier.engine.kv_cache_gib=0.2",
    "rewards.epochs=1",
    "rewards.num_workers=1",
    "serve.placement=shared",
    "align.num_workers=1",
    "align.steps=2",
    "align.rollout_batch_size=8",
    "align.ppo.minibatch_size=4",
    "align.ppo.micro_batch_size=4",
    "align.checkpoint_every=1",
    "align.rollout.max_tokens=48",
    "align.rollout.engine.kv_cache_gib=0.2",
    "evaluate.max_tokens=48",
    "evaluate.engine.kv_cache_gib=0.2",
    "report.examples=3",
)
