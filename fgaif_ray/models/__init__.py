"""The LVLM backbone, and what is trained on top of it: reward models, policy and critic."""
