"""Configuration of the entry scripts: Hydra composes configs/, dataclasses give the types, checks refuse early.

Nothing here imports torch, transformers or datasets, so help and refusals are quick.
"""

from finetune.config.load import load
from finetune.config.schema import (
    ArchitectureConfig,
    AugmentConfig,
    BackboneConfig,
    ColorJitterConfig,
    CreateBaseConfig,
    DatasetConfig,
    DiffusionModelConfig,
    EngineConfig,
    EvaluateConfig,
    FinetuneConfig,
    JobsConfig,
    LaunchConfig,
    ModelConfig,
    PrefetchConfig,
    PrepareConfig,
    RecordConfig,
    SelfAttentionConfig,
    SplitConfig,
    TextConfig,
    TrackingConfig,
    TrainConfig,
    TuneConfig,
    VisionConfig,
)

__all__ = [
    "ArchitectureConfig",
    "AugmentConfig",
    "BackboneConfig",
    "ColorJitterConfig",
    "CreateBaseConfig",
    "DatasetConfig",
    "DiffusionModelConfig",
    "EngineConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "JobsConfig",
    "LaunchConfig",
    "ModelConfig",
    "PrefetchConfig",
    "PrepareConfig",
    "RecordConfig",
    "SelfAttentionConfig",
    "SplitConfig",
    "TextConfig",
    "TrackingConfig",
    "TrainConfig",
    "TuneConfig",
    "VisionConfig",
    "load",
]
