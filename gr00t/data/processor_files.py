"""What a checkpoint carries for its processor: processor_config.json, statistics.json, embodiment_id.json, and the
tokenizer of the VLM, which turns an instruction into the chat form and token ids with room for the image features."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from gr00t.data.schema import EmbodimentTag, ModalityConfigs, from_json, to_json
from gr00t.data.state_action import EmbodimentStatistics
from gr00t.errors import ToolkitError
from gr00t.file_reading import (
    MOST_TEXT,
    check_types,
    files_below,
    parsing,
    read_json,
    read_text,
    refuse_absurd,
    refuse_special,
)
from gr00t.model.checkpoint_folder import architecture_folder, processor_kwargs, read_config_json

PROCESSOR_CLASS = "Gr00tN1d7Processor"
FILES = ("processor_config.json", "statistics.json", "embodiment_id.json")
IMAGE_TOKEN = "<|image_pad|>"
TOKENIZER_SUFFIXES = (".json", ".jinja", ".txt", ".model")
PATCH = 16  # pixels a patch side
MOST_PIXELS = 2**22  # to which small images may be enlarged
MERGE = 2  # patches a side that the vision tower merges into one token
TEMPORAL = 2  # a still image is repeated to fill the temporal patch
_QWEN_IMAGES = {
    "patch_size": PATCH,
    "temporal_patch_size": TEMPORAL,
    "merge_size": MERGE,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
_TOKENIZER_AGAIN = (
    "The folder must hold tokenizer.json, tokenizer_config.json and the chat template of the VLM; copy them again."
)
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
        known = {f.name for f in fields(cls)} - {"extra"}
        off: dict[str, Any] = {"shortest_image_edge": None, "crop_fraction": None}
        off |= dict.fromkeys(("apply_sincos_state_encoding", "use_relative_action"), False)
        given = {name: value for name, value in kwargs.items() if name in known}
        check_types(cls, {name: value for name, value in given.items() if name != "modality_configs"})
        refuse_absurd(given)
        given["modality_configs"] = {tag: from_json(of) for tag, of in kwargs["modality_configs"].items()}
        return cls(**off | given, extra={name: value for name, value in kwargs.items() if name not in known})

    def to_json(self) -> dict[str, Any]:
        """processor_kwargs with every key, the original's in its order, then `extra`."""
        values = dict(vars(self))
        extra = values.pop("extra")
        values["modality_configs"] = {tag: to_json(configs) for tag, configs in self.modality_configs.items()}
        return values | extra


@dataclass(frozen=True)
class ProcessorFiles:
    """What a checkpoint says about its processor; `statistics` and `embodiment_ids` are keyed by tag."""

    config: ProcessorConfig
    statistics: EmbodimentStatistics
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
        return _lerobots_processor_files(path)
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
    with parsing(folder / FILES[0]):
        config = ProcessorConfig.from_json(kwargs)
    with parsing(folder / FILES[2]):
        ids = {tag: int(index) for tag, index in read_json(folder / FILES[2]).items()}
    for tag in EmbodimentTag:
        ids.setdefault(tag.value, default_projector_index(tag))
    return ProcessorFiles(config, read_json(folder / FILES[1]), ids)


def _lerobots_processor_files(path: Path) -> ProcessorFiles:
    """What a LeRobot checkpoint changes of its base's files; any other folder is refused."""
    base = _base_of_lerobot(path)
    if base is None:
        if (path / "config.json").is_file():
            read_config_json(path)  # refuses another model
        raise ToolkitError(
            f"{path}: no {FILES[0]}, neither here nor in processor/. Copy {', '.join(FILES)} of the checkpoint there."
        )
    files = read_processor_files(base)
    with parsing(path / "config.json"):
        settings, tag, own = processor_kwargs(path, files.config.to_json())
        config = ProcessorConfig.from_json(settings)
    statistics = {name: entry for name, entry in files.statistics.items() if name != tag}
    statistics |= {} if own is None else {tag: own}
    return ProcessorFiles(config, statistics, files.embodiment_ids)


def _folder(path: Path) -> Path | None:
    return next((p for p in (path, path / "processor") if (p / FILES[0]).is_file()), None)


def processor_sources(path: str | Path) -> list[Path]:
    """Every file that a checkpoint's processor is read from: the three JSONs and the tokenizer's; a LeRobot
    checkpoint's own and those of its base. They may lie outside of the checkpoint (see `find_vlm_folder`)."""
    path = Path(path)
    vlm = find_vlm_folder(path, read_processor_files(path).config.model_name)
    tokenizer = {file for file in files_below(vlm) if file.suffix in TOKENIZER_SUFFIXES and file.is_file()}
    base = _base_of_lerobot(path)
    own = set() if base is None else {file for file in path.glob("[!.]*.json") if file.is_file()}
    folder = _folder(base or path)
    return sorted(own | tokenizer | ({folder / name for name in FILES} if folder else set()))


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
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    path = _base_of_lerobot(Path(path)) or Path(path)
    places = [path / "processor" / "vlm", path / model_name, path.resolve().parent / model_name, Path(model_name)]
    try:
        cached = try_to_load_from_cache(model_name, "tokenizer_config.json")
    except HFValidationError:  # model_name is a path, not owner/name
        cached = None
    for place in [*places, *([Path(cached).parent] if isinstance(cached, str) else [])]:
        if any((place / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            return place
    raise ToolkitError(
        f'{path}: the tokenizer of the VLM "{model_name}" is nowhere to be found. Looked in '
        f"{', '.join(map(str, places))} and the local Hugging Face cache; the network is never used here. Where there "
        f"is internet, run `hf download {model_name} "
        f"--include '*.json' '*.txt' --local-dir {places[0]}`, or give a folder that has it as vlm_path."
    )


def _base_of_lerobot(path: Path) -> Path | None:
    """The base of a LeRobot checkpoint; None for any other folder."""
    base = architecture_folder(path) if (path / "config.json").is_file() else path
    return None if base == path else base


def formalize(text: str) -> str:
    """Lower case without punctuation, as the released models were trained: "Color-matching!" to "colormatching".

    Blanks are kept as they are. (original: formalize_language)
    """
    return re.sub(r"[^\w\s]", "", text.lower())


@dataclass(frozen=True)
class ImageLimits:
    """What the VLM's preprocessor_config.json says about images: bounds on the area, and multiples of the sides."""

    min_pixels: int = 65536
    max_pixels: int = 16777216

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str) -> ImageLimits:
        """Read preprocessor_config.json; another normalisation or patch size than Qwen3-VL's is refused."""
        size = data.get("size") or {}
        if any(data.get(name, value) != value for name, value in _QWEN_IMAGES.items()):
            raise ToolkitError(
                f"{where}: these are not Qwen3-VL's image settings (patch 16, merge 2, mean and std 0.5). "
                "Give the tokenizer folder of the Qwen3-VL or Cosmos-Reason2 backbone the checkpoint was trained with."
            )
        least = int(data.get("min_pixels") or size.get("shortest_edge", cls.min_pixels))
        most = int(data.get("max_pixels") or size.get("longest_edge", cls.max_pixels))
        if not 1 <= least <= min(most, MOST_PIXELS):
            raise ToolkitError(f"{where}: images of {least} to {most} pixels make no sense. Copy the VLM's own file.")
        return cls(least, most)


class VlmTokenizer:
    """The Qwen tokenizer with its chat template, from a local folder; the network is never asked."""

    def __init__(self, folder: str | Path) -> None:
        """Load tokenizer.json (or vocab.json and merges.txt), the chat template and preprocessor_config.json."""
        self.folder = Path(folder)
        with parsing(self.folder / "tokenizer.json", _TOKENIZER_AGAIN):
            self._tokenizer = self._load()
            self._tokenizer.padding_side = "left"
            self.image_token_id: int = self._tokenizer.get_vocab().get(IMAGE_TOKEN, -1)
            self.largest_id = max(self._tokenizer.get_vocab().values())
        # A chat template of the whole processor (with images) takes precedence over the tokenizer's own.
        as_json, as_text = (self.folder / f"chat_template.{suffix}" for suffix in ("json", "jinja"))
        if as_json.is_file():
            self._tokenizer.chat_template = read_json(as_json).get("chat_template")
        elif as_text.is_file():
            self._tokenizer.chat_template = read_text(as_text)
        if not self._tokenizer.chat_template:
            raise ToolkitError(
                f"{self.folder}: no chat template. Copy chat_template.json (or .jinja) of the VLM into that folder."
            )
        if self.image_token_id < 0:
            raise ToolkitError(f"{self.folder}: the tokenizer does not know {IMAGE_TOKEN}; it is not a Qwen-VL one.")
        with parsing(next((path for path in (as_json, as_text) if path.is_file()), self.folder), _TOKENIZER_AGAIN):
            self.encode([self.chat_text("x", 1)], [[1]])
        path = self.folder / "preprocessor_config.json"
        with parsing(path):
            self.limits = ImageLimits.from_json(read_json(path) if path.is_file() else {}, str(path))

    def _load(self) -> Any:
        """The tokenizer; where it cannot be read, the file that is damaged is named if its form alone shows it."""
        from transformers import AutoTokenizer

        texts = [path for path in sorted(self.folder.glob("[!.]*")) if path.suffix in (".json", ".jinja", ".txt")]
        for path in texts:
            refuse_special(path)
            if path.is_file() and path.stat().st_size > MOST_TEXT:
                read_text(path)  # refused, and the library would read it
        try:
            return AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        except Exception:
            for path in texts:
                read_json(path) if path.suffix == ".json" else read_text(path)
            raise

    def chat_text(self, text: str, images: int) -> str:
        """One user turn: `images` placeholders, then the text; no system prompt, no generation prompt."""
        for token in self._tokenizer.all_special_tokens:
            if token in text:
                raise ToolkitError(f'The instruction "{text}" contains the control token {token}; take it out.')
        content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        chat: list[Any] = [{"role": "user", "content": content}]
        return str(self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=False))

    def encode(
        self, chats: Sequence[str], image_tokens: Sequence[Sequence[int]], length: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """B chat texts to input_ids and attention_mask, int64 (B, L), padded on the left to the longest or to `length`.

        image_tokens[b] holds the number of tokens of each image of chat b (a quarter of its patches).
        """
        expanded = []
        for chat, counts in zip(chats, image_tokens, strict=True):
            first, *pieces = chat.split(IMAGE_TOKEN)
            if len(pieces) != len(counts):
                raise ValueError(f"{len(pieces)} image placeholders for {len(counts)} images in: {chat}")
            expanded.append(first + "".join(IMAGE_TOKEN * n + piece for n, piece in zip(counts, pieces, strict=True)))
        padding = True if length is None else "max_length"
        out = self._tokenizer(expanded, padding=padding, max_length=length, return_tensors="np")
        return out["input_ids"].astype(np.int64), out["attention_mask"].astype(np.int64)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json, chat_template.jinja and preprocessor_config.json.

        transformers 4.57, on which the original runs, reads them too.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # encode() leaves its padding in the tokenizer, and tokenizer.json would depend on what was encoded before.
        self._tokenizer.backend_tokenizer.no_padding()
        self._tokenizer.backend_tokenizer.no_truncation()
        self._tokenizer.save_pretrained(str(folder))
        _use_names_of_transformers_4(folder / "tokenizer_config.json")
        image_settings = {
            "size": {"longest_edge": self.limits.max_pixels, "shortest_edge": self.limits.min_pixels},
            **_QWEN_IMAGES,
            "processor_class": "Qwen3VLProcessor",
            "image_processor_type": "Qwen2VLImageProcessorFast",
        }
        text = json.dumps(image_settings, indent=2) + "\n"
        (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")


def _use_names_of_transformers_4(path: Path) -> None:
    """Rewrite tokenizer_config.json, as transformers 5 saves it, in the names of 4.57, which 5 reads as its own."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings["tokenizer_class"] == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings["model_input_names"] = ["input_ids", "attention_mask"]  # 4.57 adds token_type_ids of itself
    if "extra_special_tokens" in settings:  # a list, where 4.57 expects a dict of named tokens
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
