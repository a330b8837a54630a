"""The instruction's way into the VLM: clean text, the chat form, token ids with room for the image features."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gr00t.errors import ToolkitError

IMAGE_TOKEN = "<|image_pad|>"


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
    patch_size: int = 16
    merge_size: int = 2

    @property
    def factor(self) -> int:
        """Image sides are multiples of this many pixels; each such square becomes one token."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str) -> ImageLimits:
        """Read preprocessor_config.json; another normalisation or patch size than Qwen3-VL's is refused."""
        size = data.get("size") or {}
        limits = cls(
            min_pixels=int(data.get("min_pixels") or size.get("shortest_edge", cls.min_pixels)),
            max_pixels=int(data.get("max_pixels") or size.get("longest_edge", cls.max_pixels)),
            patch_size=int(data.get("patch_size", cls.patch_size)),
            merge_size=int(data.get("merge_size", cls.merge_size)),
        )
        half = [0.5, 0.5, 0.5]
        fits = (limits.patch_size, limits.merge_size) == (cls.patch_size, cls.merge_size)
        if not fits or data.get("image_mean", half) != half or data.get("image_std", half) != half:
            raise ToolkitError(
                f"{where}: these are not Qwen3-VL's image settings (patch 16, merge 2, mean and std 0.5). "
                "Give the tokenizer folder of the Qwen3-VL or Cosmos-Reason2 backbone the checkpoint was trained with."
            )
        return limits


class VlmTokenizer:
    """The Qwen tokenizer with its chat template, from a local folder; the network is never asked."""

    def __init__(self, folder: str | Path) -> None:
        """Load tokenizer.json (or vocab.json and merges.txt), the chat template and preprocessor_config.json."""
        from transformers import AutoTokenizer

        self.folder = Path(folder)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ToolkitError(
                f"{self.folder}: the tokenizer cannot be read ({error}). The folder must hold tokenizer.json, "
                "tokenizer_config.json and the chat template of the VLM; copy them there again."
            ) from error
        self._tokenizer.padding_side = "left"
        self._take_chat_template()
        self.image_token_id: int = self._tokenizer.get_vocab().get(IMAGE_TOKEN, -1)
        if self.image_token_id < 0:
            raise ToolkitError(f"{self.folder}: the tokenizer does not know {IMAGE_TOKEN}; it is not a Qwen-VL one.")
        path = self.folder / "preprocessor_config.json"
        data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.limits = ImageLimits.from_json(data, str(path))

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
        """Chat texts to input_ids and attention_mask, both int64 (B, L), padded on the left to the longest or to
        `length`.

        image_tokens[b] holds the number of tokens of each image of chat b (a quarter of its patches).
        """
        expanded = [_expand(chat, counts) for chat, counts in zip(chats, image_tokens, strict=True)]
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
            "patch_size": self.limits.patch_size,
            "temporal_patch_size": 2,
            "merge_size": self.limits.merge_size,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "processor_class": "Qwen3VLProcessor",
            "image_processor_type": "Qwen2VLImageProcessorFast",
        }
        text = json.dumps(image_settings, indent=2) + "\n"
        (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")

    def _take_chat_template(self) -> None:
        # A chat template of the whole processor (with images) goes before the tokenizer's own.
        for name in ("chat_template.json", "chat_template.jinja"):
            path = self.folder / name
            if path.is_file():
                text = path.read_text(encoding="utf-8")
                self._tokenizer.chat_template = json.loads(text)["chat_template"] if path.suffix == ".json" else text
                return
        if not self._tokenizer.chat_template:
            raise ToolkitError(
                f"{self.folder}: no chat template. Copy chat_template.json (or .jinja) of the VLM into that folder."
            )


def _use_names_of_transformers_4(path: Path) -> None:
    """Rewrite tokenizer_config.json, as transformers 5 saves it, in the names of 4.57, which 5 reads as its own."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings["tokenizer_class"] == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings["model_input_names"] = ["input_ids", "attention_mask"]  # 4.57 adds token_type_ids of itself
    if "extra_special_tokens" in settings:  # a list, where 4.57 expects a dict of named tokens
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def _expand(chat: str, counts: Sequence[int]) -> str:
    pieces = chat.split(IMAGE_TOKEN)
    if len(pieces) != len(counts) + 1:
        raise ValueError(f"{len(pieces) - 1} image placeholders for {len(counts)} images in: {chat}")
    middle = "".join(IMAGE_TOKEN * count + piece for count, piece in zip(counts, pieces[1:], strict=True))
    return pieces[0] + middle
