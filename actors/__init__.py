"""The actors on the cluster: Ray Data stages, the Serve application, rollout workers and the PPO learner."""
