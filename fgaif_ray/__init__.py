"""FGAIF-Ray: fine-grained AI feedback for vision-language models.

Plain modules that hold the method of FGAIF (arXiv 2404.05046): segments, feedback, reward models, dense-reward PPO and
evaluation. Nothing here imports ray or vllm; what runs on the cluster lives in the package ``actors``, what a person
submits in ``jobs``.
"""

__version__ = "0.1.0"
