"""The identity of a run, with the digest of every file that it reads: datasets and base checkpoint, by content."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from finetune.config.identity import recipe
from finetune.config.schema import FinetuneConfig
from gr00t.data.mixture import Mixture
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.data.processor_files import TOKENIZER_SUFFIXES, processor_sources
from gr00t.data.schema import comparable
from gr00t.data.statistics import Tail
from gr00t.data.steps import StepReader
from gr00t.errors import ToolkitError
from gr00t.files import file_sha256, read_json, write_json
from gr00t.model.backbone_config import backbone_file
from gr00t.model.checkpoint import fingerprint, read_config
from gr00t.model.checkpoint_folder import weight_files
from gr00t.model.checkpoint_kind import architecture_folder, read_config_json

Files = dict[str, str]
"""The digest of each input, by the name that messages call it: dataset_files.meta/info.json, base_files.config.json."""

LARGE_BYTES = 64 * 2**20  # weights, and videos of many episodes: hashed once, not at every start
REMEMBERED = "digests.json"


def run_identity(config: FinetuneConfig, base: Path, data: StepReader | Mixture) -> tuple[dict[str, Any], Files]:
    """What must not change when a run is continued: all that decides a later step's loss; and every input's digest.

    The identity holds one digest for all frame tables of a dataset and one for all its videos, since every checkpoint
    carries it; the digests of single files say which of them has changed.
    """
    mixture = Mixture([data]) if isinstance(data, StepReader) else data
    digests = Digests(Path(config.cache_dir) / REMEMBERED)
    base_files, dataset_files = _base_files(base, digests), _dataset_files(mixture, digests)
    identity = {
        **recipe(dataclasses.asdict(config)),
        "modality_config": comparable(mixture.readers[0].configs),
        "statistics": _digest(mixture.statistics(cast(Tail, config.dataset.tail))),
        "dataset": mixture.training_digest(digests),
        "dataset.shares": mixture.shares,
        "dataset_files": _summary(dataset_files),
        "base": fingerprint(base),
        "base_files": base_files,
        **({"padding": "left out"} if _padding_reached_results(base, mixture) else {}),
    }
    digests.keep()
    files = {f"dataset_files.{name}": digest for name, digest in dataset_files.items()}
    return identity, files | {f"base_files.{name}": digest for name, digest in base_files.items()}


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
        found[f"{prefix}meta/split.json (val_episodes)"] = _digest(layout.val_episodes)
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
    model_name = str(read_config_json(base).get("model_name"))
    architecture = backbone_file(model_name, architecture_folder(base))
    own = [path for path in (base / "processor").rglob("*") if path.suffix in TOKENIZER_SUFFIXES and path.is_file()]
    files = {*weight_files(base), *base.glob("*.json"), *own, *processor_sources(base)}
    files |= {architecture} if architecture else set()
    return {_name(path, base): digest_of(path) for path in sorted(files)}


def _name(path: Path, base: Path) -> str:
    inside = path.is_relative_to(base)
    return path.relative_to(base).as_posix() if inside else f"{path.parent.name}/{path.name}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()


class Digests:
    """From file to digest. A large file is hashed once, as long as it keeps its size, times and inode.

    `path` holds what is known of large files; where it cannot be written, the next start hashes them again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[Path, str] = {}
        self._large: dict[str, list[Any]] = {}
        with suppress(ToolkitError):  # missing, or damaged
            self._large = read_json(path)
        self._before = dict(self._large)

    def __call__(self, file: Path) -> str:
        if file not in self._found:
            state = file.stat()
            self._found[file] = self._of_large(file, state) if state.st_size >= LARGE_BYTES else file_sha256(file)
        return self._found[file]

    def _of_large(self, file: Path, state: os.stat_result) -> str:
        name, now = str(file.resolve()), [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
        if self._large.get(name, [])[:-1] != now:
            self._large[name] = [*now, file_sha256(file)]
        return str(self._large[name][-1])

    def keep(self) -> None:
        """Write what is known of large files."""
        if self._large != self._before:
            with suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.path, self._large)
