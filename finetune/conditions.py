"""What a run is computed with: libraries, device, processes, variables, code. It may change numbers, mostly by
rounding, but does not make another run. It is written with every attempt and checkpoint; a change is warned about."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import torch

from finetune.checkpointing import Checkpoint
from finetune.config.identity import flat
from finetune.config.schema import FinetuneConfig
from finetune.credentials import SECRET_NAME
from finetune.engine import Engine
from gr00t.model.gr00t_n1d7 import Gr00tN1d7

log = logging.getLogger(__name__)
PACKAGES = (
    *("torch", "transformers", "tokenizers", "numpy", "av", "accelerate", "datasets", "pyarrow", "safetensors"),
    *("triton", "deepspeed", "peft", "bitsandbytes", "flash_attn"),
)
# Of all variables these alone change numbers; others may hold secrets and are never looked at.
VARIABLES = re.compile(
    r"NVIDIA_TF32_OVERRIDE|TORCH_ALLOW_TF32_CUBLAS_OVERRIDE|TORCH_BLAS_PREFER_CUBLASLT|TORCHDYNAMO_DISABLE|CUBLAS\w*"
    r"|ATEN_CPU_CAPABILITY|NPY_DISABLE_CPU_FEATURES|OMP_NUM_THREADS|NCCL_ALGO|NCCL_PROTO"
    r"|(MKL|ONEDNN|DNNL|OPENBLAS|OPENCV|CUDNN|TORCH_CUDNN|TORCHINDUCTOR|PYTORCH|ACCELERATE)_\w+"
)
_ROOMS = ("gr00t", "finetune", "data_prep")
_SHOWN = 6
_DROPOUT = "dropout is drawn for each micro-batch, so losses differ where there is any"


def conditions(config: FinetuneConfig, engine: Engine, model: Gr00tN1d7) -> dict[str, Any]:
    """All of it, as it is now in this process, which has built the model."""
    return {
        "packages": _packages(),
        "hardware": _hardware(engine),
        "computation": _computation(config, engine, model),
        "environment": _environment(os.environ),
        "code": _code(),
    }


def changes(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each condition that differs from those of a checkpoint; none where it has not recorded any."""
    was, here = (flat({k: v for k, v in side.items() if k != "code"}) for side in (there, now))
    names = [name for name in sorted({*was, *here}) if was.get(name) != here.get(name)] if there else []
    lines = [
        f"{_short(name)} {_said(was.get(name))} there, {_said(here.get(name))} now: {_effect(name)}" for name in names
    ]
    code = _changed_code(there.get("code", {}), now.get("code", {}))
    return [*lines, *([f"the code of {code} has changed since: losses may differ"] if code else [])]


def warn(checkpoint: Checkpoint, now: Mapping[str, Any]) -> None:
    """Say in a line each what is otherwise than when a checkpoint was written."""
    for line in changes(checkpoint.state.get("conditions", {}), now):
        log.warning("%s is resumed, but %s", checkpoint.folder.name, line)


def _packages() -> dict[str, str]:
    found = {"python": platform.python_version(), "opencv": cv2.__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _hardware(engine: Engine) -> dict[str, Any]:
    """The GPU, and the kind of processor as PyTorch and oneDNN choose their kernels by."""
    found = {name: value for name, value in engine.hardware().items() if name in ("device", "gpu")}
    found["processor"] = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    for feature in ("amx_tile", "avx512_bf16"):
        supported = getattr(torch.cpu, f"_is_{feature}_supported", None)
        found[feature] = bool(supported()) if supported else None
    if engine.device.type == "cuda":
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found


def _computation(config: FinetuneConfig, engine: Engine, model: Gr00tN1d7) -> dict[str, Any]:
    """What the configuration leaves to the machine, and what of it changes rounding only."""
    train = config.train
    return {
        "precision": engine.hardware()["precision"],
        "engine": config.engine.name,
        "processes": engine.world_size,
        "micro_batch_size": train.micro_batch_size or train.global_batch_size // engine.world_size,
        "backbone_batch_size": model.backbone.at_once,
        "features": train.features,
        "activation_checkpointing": train.activation_checkpointing,
        "attention": model.backbone.vlm.language_model.config._attn_implementation,
        "compiled": any(module._compiled_call_impl is not None for module in model.action_head.modules()),
        "threads": torch.get_num_threads(),
    }


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Neither secrets nor paths, which change no number; nor how memory is allotted."""
    return {
        name: value
        for name, value in sorted(variables.items())
        if VARIABLES.fullmatch(name)
        and not SECRET_NAME.search(name)
        and not name.endswith("ALLOC_CONF")
        and os.sep not in value
    }


def _code() -> dict[str, str]:
    """A short digest of each module that is imported from the toolkit."""
    imported = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    ours = {name: file for name, file in sorted(imported.items()) if file and name.partition(".")[0] in _ROOMS}
    return {name: hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12] for name, file in ours.items()}


def _changed_code(there: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Modules that both have and that differ; what is imported later or not at all is told by those that import it."""
    changed = [name for name in now if name in there and there[name] != now[name]]
    more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    return ", ".join(changed[:_SHOWN]) + more


def _short(name: str) -> str:
    return name.partition(".")[2]


def _said(value: Any) -> str:
    return "none" if value is None else str(value)


def _effect(name: str) -> str:
    return _DROPOUT if name == "computation.micro_batch_size" else "losses may differ by rounding"
