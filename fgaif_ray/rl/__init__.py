"""PPO on dense rewards, in plain torch: rewards, KL, advantages, losses, trajectories, guards."""
