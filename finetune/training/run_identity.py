"""What a run is made of and computed with.

The identity of a run holds all that decides a later step's loss, its datasets and base checkpoint by content. The
conditions (libraries, device, processes, variables, code) may change numbers, mostly by rounding, but do not make
another run: they are written with every attempt and checkpoint, and a change is warned about."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import platform
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import cv2
import torch

from finetune.recipe import FinetuneConfig
from finetune.recipe.recipe_identity import recipe
from finetune.training.checkpointing import Checkpoint
from finetune.training.engine import Engine
from gr00t.data.dataset import Mixture
from gr00t.data.meta_files import in_ranges
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.processor_files import TOKENIZER_SUFFIXES, processor_sources
from gr00t.data.schema import comparable
from gr00t.data.statistics import Tail
from gr00t.errors import ToolkitError, first_of
from gr00t.file_reading import files_below, read_json
from gr00t.file_replacement import file_sha256, write_json
from gr00t.model.architecture import backbone_file
from gr00t.model.checkpoint_folder import architecture_folder, fingerprint, read_config_json, weight_files
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from gr00t.model.weight_files import read_config
from toolkit.credentials import SECRET_NAME
from toolkit.declaration import flat

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
LARGE_BYTES = 64 * 2**20  # weights, and videos of many episodes: hashed once, not at every start
_ROOMS = ("gr00t", "toolkit", "finetune", "data_prep")
_MODULES_LISTED = 6

log = logging.getLogger(__name__)

Files = dict[str, str]  # the digest of each input, by the name that messages call it: base_files.config.json, ...


def run_identity(config: FinetuneConfig, base: Path, mixture: Mixture) -> tuple[dict[str, Any], Files]:
    """What must not change when a run is continued: all that decides a later step's loss; and every input's digest.

    The identity holds one digest for all frame tables of a dataset and one for all its videos, since every checkpoint
    carries it; the digests of single files say which of them has changed.
    """
    digests = Digests(Path(config.cache_dir) / "digests.json")
    base_files, dataset_files = _base_files(base, digests), _dataset_files(mixture, digests)
    identity = {
        **recipe(dataclasses.asdict(config)),
        "modality_config": comparable(mixture.readers[0].configs),
        "statistics": _digest(mixture.statistics(cast(Tail, config.dataset.tail))),
        "dataset": mixture.training_digest(digests),
        "dataset.shares": mixture.shares,
        **({"dataset.exclude": excluded} if (excluded := _excluded(mixture)) else {}),
        "dataset_files": _summary(dataset_files),
        "base": fingerprint(base),
        "base_files": base_files,
        **({"padding": "left out"} if _padding_reached_results(base, mixture) else {}),
    }
    digests.keep()
    return identity, flat({"dataset_files": dataset_files, "base_files": base_files})


def _excluded(mixture: Mixture) -> list[Any]:
    """The episodes left out of the dataset; of several datasets a list for each, [] where none is left out."""
    found = [in_ranges(reader.layout.excluded) for reader in mixture.readers]
    return found[0] if len(found) == 1 else found if any(found) else []


def _padding_reached_results(base: Path, mixture: Mixture) -> bool:
    """Whether earlier versions gave other losses: prompts of several lengths were padded, and these parts of the head
    attended to the padding."""
    config = read_config(base)
    texts = mixture.instructions([reader.layout.train_episodes for reader in mixture.readers])
    if len(texts) == 1 or not (config.vl_self_attention or not config.use_alternate_vl_dit):
        return False
    processor = Gr00tN1d7Processor.from_pretrained(base)
    masks = processor.vlm.encode([processor.encode_text(text, 0) for text in texts], [[] for _ in texts])[1]
    return len({int(mask.sum()) for mask in masks}) > 1


def _dataset_files(mixture: Mixture, digest_of: Digests) -> Files:
    """By their place in the dataset; of several datasets below 1/, 2/, ..."""
    found: Files = {}
    for number, layout in enumerate((reader.layout for reader in mixture.readers), start=1):
        prefix = f"{number}/" if len(mixture.readers) > 1 else ""
        found |= {f"{prefix}{path.relative_to(layout.root).as_posix()}": digest_of(path) for path in layout.files()}
        found[f"{prefix}meta/split.json (val_episodes)"] = _digest(layout.held_out)
    return found


def _summary(files: Files) -> Files:
    """Meta files one by one; one digest for all files below data/, and one below videos/."""
    found: Files = {}
    for name, digest in sorted(files.items()):
        parts = name.split("/")
        place = next((i for i, part in enumerate(parts) if part in ("data", "videos") and i < 2), None)
        key = name if place is None else "/".join(parts[: place + 1])
        found[key] = digest if place is None else _digest([found.get(key), name, digest])
    return found


def _base_files(base: Path, digest_of: Digests) -> Files:
    """Weights, and all that configures model, processor, tokenizer and backbone; the last two may lie elsewhere."""
    architecture = backbone_file(str(read_config_json(base).get("model_name")), architecture_folder(base))
    own = [path for path in files_below(base / "processor") if path.suffix in TOKENIZER_SUFFIXES and path.is_file()]
    files = {*weight_files(base), *filter(Path.is_file, base.glob("[!.]*.json")), *own, *processor_sources(base)}
    files |= {architecture} if architecture else set()
    found: Files = {}
    for path in sorted(files):
        inside = path.is_relative_to(base)
        found[path.relative_to(base).as_posix() if inside else f"{path.parent.name}/{path.name}"] = digest_of(path)
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()


class Digests:
    """From file to digest, which is known as long as the file keeps its size, times and inode.

    `path` holds those of large files; where it cannot be written, the next start hashes them again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, list[Any]] = {}
        with suppress(ToolkitError):  # missing, or damaged
            self._known = read_json(path)
        self._before = dict(self._known)

    def __call__(self, file: Path) -> str:
        name, state = str(file.resolve()), file.stat()
        now = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
        if self._known.get(name, [])[:-1] != now:
            self._known[name] = [*now, file_sha256(file)]
        return str(self._known[name][-1])

    def keep(self) -> None:
        """Write what is known of large files."""
        large = {name: known for name, known in self._known.items() if known[0] >= LARGE_BYTES}
        if large != self._before:
            with suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.path, large)


def conditions(config: FinetuneConfig, engine: Engine, model: Gr00tN1d7) -> dict[str, Any]:
    """All that this process computes with now, after it has built the model."""
    return {
        "packages": _packages(),
        "hardware": _hardware(engine),
        "computation": _computation(config, engine, model),
        "environment": _environment(os.environ),
        "code": _code(),
    }


def _packages() -> dict[str, str]:
    found = {"python": platform.python_version(), "opencv": cv2.__version__}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
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
    ours = [(name, module) for name, module in sorted(sys.modules.items()) if name.partition(".")[0] in _ROOMS]
    files = {name: Path(str(module.__file__)) for name, module in ours if getattr(module, "__file__", None)}
    return {name: file_sha256(file)[:12] for name, file in files.items()}


def warn(checkpoint: Checkpoint, now: Mapping[str, Any]) -> None:
    """Log a line for each condition that has changed since a checkpoint was written."""
    for line in changes(checkpoint.state.get("conditions", {}), now):
        log.warning("%s is resumed, but %s", checkpoint.folder.name, line)


def changes(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each condition that differs from those of a checkpoint; none where it has not recorded any."""
    if not there:
        return []
    lines = []
    was, here = (flat({k: v for k, v in side.items() if k != "code"}) for side in (there, now))
    for name in sorted({*was, *here}):
        old, new = ("none" if side.get(name) is None else str(side[name]) for side in (was, here))
        effect = "losses may differ by rounding"
        if name == "computation.micro_batch_size":
            effect = "dropout is drawn for each micro-batch, so losses differ where there is any"
        if name == "computation.precision":
            effect = "losses differ by the rounding of bf16, from here on"
        if was.get(name) != here.get(name):
            lines.append(f"{name.partition('.')[2]} {old} there, {new} now: {effect}")
    # Modules that both have; what is imported later or not at all shows in those that import it.
    code = there.get("code", {})
    changed = [name for name, digest in now.get("code", {}).items() if code.get(name, digest) != digest]
    if changed:
        lines.append(f"the code of {first_of(changed, _MODULES_LISTED)} has changed since: losses may differ")
    return lines
