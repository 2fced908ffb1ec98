"""The configuration: one tree, a section per job, read from YAML with ``--set section.key=value`` on top.

This package is light on purpose: ``--help`` and every configuration error answer before torch, ray or vllm are
imported.
"""

from fgaif_ray.config.align import (
    AlignConfig,
    DPOConfig,
    GuardConfig,
    KLConfig,
    MLflowConfig,
    PPOConfig,
    RewardComposition,
    RolloutConfig,
    TrackingConfig,
    WandbConfig,
)
from fgaif_ray.config.base import EngineConfig, LoRAOptions, PolicyConfig, RayConfig, RunConfig, Section
from fgaif_ray.config.benchmarks import (
    AmberConfig,
    BenchmarkConfig,
    BenchmarksConfig,
    ChairConfig,
    JudgeConfig,
    LlavaBenchConfig,
    MMHalConfig,
    PopeConfig,
)
from fgaif_ray.config.calls import CallsConfig, PriceConfig
from fgaif_ray.config.data import BlindConfig, ColumnNames, DataConfig, SampleConfig, ShapesConfig
from fgaif_ray.config.guard import ChatGuardConfig, GuardTree
from fgaif_ray.config.label import (
    CalibrationConfig,
    ControlItemConfig,
    ExtractorConfig,
    HumanLabelsConfig,
    LabelConfig,
    NoiseConfig,
    NoiseRates,
    VerifierConfig,
)
from fgaif_ray.config.rewards import RewardsConfig, ServeConfig
from fgaif_ray.config.tree import (
    Config,
    EvaluateConfig,
    ReportConfig,
    change_config,
    dump_config,
    guard_tree,
    load_config,
    recorded_config,
)

__all__ = [
    "AlignConfig",
    "AmberConfig",
    "BenchmarkConfig",
    "BenchmarksConfig",
    "BlindConfig",
    "CalibrationConfig",
    "CallsConfig",
    "ChairConfig",
    "ChatGuardConfig",
    "ColumnNames",
    "Config",
    "ControlItemConfig",
    "DPOConfig",
    "DataConfig",
    "EngineConfig",
    "EvaluateConfig",
    "ExtractorConfig",
    "GuardConfig",
    "GuardTree",
    "HumanLabelsConfig",
    "JudgeConfig",
    "KLConfig",
    "LabelConfig",
    "LlavaBenchConfig",
    "LoRAOptions",
    "MLflowConfig",
    "MMHalConfig",
    "NoiseConfig",
    "NoiseRates",
    "PPOConfig",
    "PolicyConfig",
    "PopeConfig",
    "PriceConfig",
    "RayConfig",
    "ReportConfig",
    "RewardComposition",
    "RewardsConfig",
    "RolloutConfig",
    "RunConfig",
    "SampleConfig",
    "Section",
    "ServeConfig",
    "ShapesConfig",
    "TrackingConfig",
    "VerifierConfig",
    "WandbConfig",
    "change_config",
    "dump_config",
    "guard_tree",
    "load_config",
    "recorded_config",
]
