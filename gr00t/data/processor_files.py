"""A checkpoint's processor files: processor_config.json, statistics.json, embodiment_id.json, the VLM's folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from gr00t.data.schema import EmbodimentTag, ModalityConfig, ModalityConfigs
from gr00t.data.state_action import Statistics
from gr00t.errors import ToolkitError
from gr00t.files import read_json

PROCESSOR_CLASS = "Gr00tN1d7Processor"
FILES = ("processor_config.json", "statistics.json", "embodiment_id.json")
TOKENIZER_SUFFIXES = (".json", ".jinja", ".txt", ".model")

# Which slice of the per-embodiment weights a tag uses. (original: the processor's table of projector indices)
_PROJECTOR_INDEX = {
    "simpler_env_google": 0,
    "simpler_env_widowx": 1,
    "libero_sim": 2,
    "new_embodiment": 10,
    "robocasa": 10,
    "unitree_g1_sonic": 11,
    "oxe_droid": 24,
    "real_g1": 25,
    "unitree_g1_full_body": 25,
    "real_r1": 26,
    "xdof": 27,
}


def default_projector_index(tag: str) -> int:
    """The projector index of a tag that a checkpoint's embodiment_id.json does not list."""
    tag = EmbodimentTag.parse(tag).value
    return next(index for start, index in _PROJECTOR_INDEX.items() if tag.startswith(start))


@dataclass(frozen=True)
class ProcessorConfig:
    """The processor_kwargs of processor_config.json, under the original's names.

    Image sizes are in pixels, `random_rotation_angle` in degrees, horizons in steps. `use_albumentations`,
    `letter_box_transform`, `model_type` and `use_mean_std` change nothing; they are carried along because the
    original wants them in the file. `extra` holds keys of later versions, written back as they came.
    """

    modality_configs: dict[str, ModalityConfigs]
    image_crop_size: list[int] | None = None
    image_target_size: list[int] | None = None
    use_albumentations: bool = True
    random_rotation_angle: float | None = None
    color_jitter_params: dict[str, float] | None = None
    shortest_image_edge: int | None = 256
    crop_fraction: float | None = 0.95
    letter_box_transform: bool = False
    model_name: str = "nvidia/Cosmos-Reason2-2B"
    model_type: str = "qwen"
    formalize_language: bool = True
    max_state_dim: int = 132
    max_action_dim: int = 132
    max_action_horizon: int = 40
    use_percentiles: bool = False
    use_mean_std: bool = False
    clip_outliers: bool = True
    apply_sincos_state_encoding: bool = True
    use_relative_action: bool = True
    exclude_state: bool = False
    state_dropout_prob: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, kwargs: dict[str, Any]) -> ProcessorConfig:
        """Read processor_kwargs. Keys that the file leaves out are off, as the original takes them."""
        known = {f.name for f in fields(cls)} - {"extra", "modality_configs"}
        values: dict[str, Any] = {"shortest_image_edge": None, "crop_fraction": None}
        values |= dict.fromkeys(("apply_sincos_state_encoding", "use_relative_action"), False)
        values |= {name: value for name, value in kwargs.items() if name in known}
        configs = {
            tag: {modality: ModalityConfig.from_json(data) for modality, data in modalities.items()}
            for tag, modalities in kwargs["modality_configs"].items()
        }
        extra = {name: value for name, value in kwargs.items() if name not in known | {"modality_configs"}}
        return cls(modality_configs=configs, extra=extra, **values)

    def to_json(self) -> dict[str, Any]:
        """processor_kwargs with every key, the original's in its order, then `extra`."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        values["modality_configs"] = {
            tag: {modality: config.to_json() for modality, config in configs.items()}
            for tag, configs in self.modality_configs.items()
        }
        return values | self.extra


@dataclass(frozen=True)
class ProcessorFiles:
    """What a checkpoint says about its processor; `statistics` and `embodiment_ids` are keyed by tag."""

    config: ProcessorConfig
    statistics: Statistics
    embodiment_ids: dict[str, int]


def read_processor_files(path: str | Path) -> ProcessorFiles:
    """Read the three JSONs from the checkpoint's root or its processor/ folder.

    Raises ToolkitError for a missing folder or file, and for a checkpoint of another GR00T generation.
    """
    path = Path(path)
    if not path.is_dir():
        raise ToolkitError(
            f"{path}: no such checkpoint folder. Give a local folder; to fetch the released one, run "
            f"`hf download nvidia/GR00T-N1.7-3B --local-dir {path}` where there is internet."
        )
    folder = _folder(path)
    if folder is None:
        base = _base_of_lerobot(path)
        if base is not None:
            return _read_lerobot(path, read_processor_files(base))
        _refuse_other_models(path)
        raise ToolkitError(
            f"{path}: no {FILES[0]}, neither here nor in processor/. Copy {', '.join(FILES)} of the checkpoint there."
        )
    document = read_json(folder / FILES[0])
    kind, kwargs = document.get("processor_class"), document.get("processor_kwargs")
    if kind != PROCESSOR_CLASS or not isinstance(kwargs, dict) or "modality_configs" not in kwargs:
        raise ToolkitError(
            f'{folder / FILES[0]}: processor_class is "{kind}" where GR00T N1.7 has "{PROCESSOR_CLASS}" with '
            "processor_kwargs.modality_configs. Checkpoints of N1.5 and N1.6 do not fit this model: start from N1.7."
        )
    if kwargs.get("use_tactile"):
        raise ToolkitError(
            f"{folder / FILES[0]} has use_tactile on, which a later GR00T brought and this toolkit does not have. "
            "Use a checkpoint without it."
        )
    config = ProcessorConfig.from_json(kwargs)
    ids = {tag: int(index) for tag, index in read_json(folder / FILES[2]).items()}
    for tag in EmbodimentTag:
        ids.setdefault(tag.value, default_projector_index(tag))
    return ProcessorFiles(config, read_json(folder / FILES[1]), ids)


def _folder(path: Path) -> Path | None:
    return next((p for p in (path, path / "processor") if (p / FILES[0]).is_file()), None)


def processor_sources(path: str | Path) -> list[Path]:
    """Every file that a checkpoint's processor is read from: the three JSONs and the tokenizer's; a LeRobot
    checkpoint's own and those of its base. They may lie outside of the checkpoint (see `find_vlm_folder`)."""
    path = Path(path)
    vlm = find_vlm_folder(path, read_processor_files(path).config.model_name)
    tokenizer = [file for file in vlm.rglob("*") if file.suffix in TOKENIZER_SUFFIXES and file.is_file()]
    base = _base_of_lerobot(path)
    own = [] if base is None else [file for file in path.glob("*.json") if file.is_file()]
    folder = _folder(path if base is None else base)
    return sorted({*own, *([] if folder is None else [folder / name for name in FILES]), *tokenizer})


def write_processor_files(path: str | Path, files: ProcessorFiles) -> None:
    """Write the three JSONs at the root, where LeRobot looks, and in processor/, where the original's releases do."""
    processor = {"processor_class": PROCESSOR_CLASS, "processor_kwargs": files.config.to_json()}
    for folder in (Path(path), Path(path) / "processor"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in zip(FILES, (processor, files.statistics, files.embodiment_ids), strict=True):
            (folder / name).write_text(json.dumps(data, indent=2), encoding="utf-8")


def find_vlm_folder(path: str | Path, model_name: str) -> Path:
    """The folder with the tokenizer that a checkpoint at `path` needs; local places only, in this order:
    processor/vlm, `model_name` below or beside the checkpoint, `model_name` as a path, the Hugging Face cache."""
    path = Path(path)
    path = _base_of_lerobot(path) or path
    places = [path / "processor" / "vlm", path / model_name, path.resolve().parent / model_name, Path(model_name)]
    for place in places:
        if _has_tokenizer(place):
            return place
    cached = _in_cache(model_name)
    if cached is not None:
        return cached
    looked = ", ".join(str(place) for place in places)
    raise ToolkitError(
        f'{path}: the tokenizer of the VLM "{model_name}" is nowhere to be found. Looked in {looked} and the local '
        f"Hugging Face cache; the network is never used here. Where there is internet, run `hf download {model_name} "
        f"--include '*.json' '*.txt' --local-dir {places[0]}`, or give a folder that has it as vlm_path."
    )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))


def _in_cache(model_name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model_name, "tokenizer_config.json")
    except HFValidationError:  # model_name is a path, not owner/name
        return None
    if not isinstance(found, str) or not _has_tokenizer(Path(found).parent):
        return None
    return Path(found).parent


def _refuse_other_models(path: Path) -> None:
    from gr00t.model.checkpoint_kind import read_config_json

    if (path / "config.json").is_file():
        read_config_json(path)


def _base_of_lerobot(path: Path) -> Path | None:
    """The base of a LeRobot checkpoint; None for any other folder."""
    from gr00t.model.checkpoint_kind import architecture_folder

    if not (path / "config.json").is_file():
        return None
    base = architecture_folder(path)
    return None if base == path else base


def _read_lerobot(path: Path, base: ProcessorFiles) -> ProcessorFiles:
    from gr00t.model.lerobot import processor_kwargs

    kwargs, tag, statistics = processor_kwargs(path, base.config.to_json())
    others = {name: entry for name, entry in base.statistics.items() if name != tag}
    own = {} if statistics is None else {tag: statistics}
    return ProcessorFiles(ProcessorConfig.from_json(kwargs), others | own, base.embodiment_ids)
