"""A base checkpoint with random weights: python -m finetune.create_base model=tiny."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.recipe.model_config import ArchitectureConfig, ModelConfig
from gr00t.data.processor_files import ProcessorConfig, ProcessorFiles, VlmTokenizer, default_projector_index
from gr00t.data.schema import EmbodimentTag
from gr00t.errors import ToolkitError, disk_errors
from gr00t.file_replacement import whole_folder
from gr00t.model.architecture import DEFAULT_DIFFUSION_MODEL, QWEN3_VL_2B, RELEASED_VL_SELF_ATTENTION, parse_backbone
from toolkit.command_line import run_main
from toolkit.declaration import key
from toolkit.shared_keys import HUB_ID, LARGEST_SEED, check_writable, is_hub_id

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from gr00t.model.gr00t_n1d7 import Gr00tN1d7


# As many merges as make the common instructions short; bytes cover everything else.
CORPUS = (
    "pick up the color-matching object pick up the object-matching object pick up the size-matching object "
    "pick up the position-matching object place it in the bowl open the drawer close the drawer push the cube"
)
# Of the instruction suite: what a word means a small model learns sooner than what its letters do.
VERBS = "lift grasp push pull rotate slide"
WORDS = (
    "red yellow blue orange green black sphere cup car pyramid star left right middle front back on at "
    "small large smaller larger smallest largest"
)
_NAMES = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
SPECIAL_TOKENS = tuple(f"<|{name}|>" for name in _NAMES)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}<|im_start|>{{ message.role }}\n"
    "{%- if message.content is string %}{{ message.content }}{% else %}"
    "{%- for part in message.content %}"
    "{%- if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{%- endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(kw_only=True)
class CreateBaseConfig:
    """Make a base checkpoint with random weights, to try everything without the released one."""

    model: ModelConfig = key("the model that is made")
    out: str = key("folder of the new checkpoint", "${model.base}", folder=True)
    seed: int = key("seed of the weights", 0, at_least=0, at_most=LARGEST_SEED)
    dtype: str = key("type of the stored weights", "bf16", choices=("bf16", "fp32"))
    overwrite: bool = key("replace a checkpoint that is already there", False)

    def check_here(self) -> None:
        """Require a local folder to write to, with nothing in it unless it may be replaced."""
        out = Path(self.out)
        if is_hub_id(self.out) and HUB_ID.fullmatch(self.out):
            raise ToolkitError(
                f"out={self.out} is a Hugging Face id, not a folder. Give one: out=checkpoints/base/{self.model.name}."
            )
        check_writable("out", out)
        if out.is_dir() and any(out.iterdir()) and not self.overwrite:
            raise ToolkitError(f"out={out} is not empty. Take another folder, or overwrite=true to replace it.")


def create_base(config: CreateBaseConfig) -> Path:
    """Write the checkpoint to `config.out`: seeded weights, a small tokenizer, a processor that knows no robot yet."""
    from gr00t.model.finished_checkpoint import refuse_foreign, write_manifest

    out = Path(config.out)
    refuse_foreign(out)
    remedy = "Free some space, or give another folder, out=FOLDER."
    with disk_errors(out, remedy), whole_folder(out, replace=config.overwrite, replaceable=refuse_foreign) as folder:
        special_tokens = write_small_tokenizer(folder / "processor" / "vlm")
        model = random_model(config.model.architecture, special_tokens, seed=config.seed, dtype=config.dtype)
        model.save_pretrained(folder)
        _write_processor(folder, config.model.architecture)
        write_manifest(folder)
    return out


def random_model(
    architecture: ArchitectureConfig, special_tokens: dict[str, int], *, seed: int, dtype: str
) -> Gr00tN1d7:
    """A model with random weights, the same for the same seed."""
    import torch

    from gr00t.model.gr00t_n1d7 import Gr00tN1d7

    backbone = parse_backbone(architecture_json(architecture, special_tokens), "model.architecture.backbone")
    default = torch.get_default_dtype()
    torch.set_default_dtype({"bf16": torch.bfloat16, "fp32": torch.float32}[dtype])
    try:
        torch.manual_seed(seed)
        model = Gr00tN1d7(_model_config(architecture), backbone)
        if architecture.sinusoidal_positions is not None:
            _write_sinusoids(model.backbone.vlm.visual.pos_embed.weight.data, architecture.sinusoidal_positions)
        return model
    finally:
        torch.set_default_dtype(default)


def _write_sinusoids(table: Tensor, amplitude: float) -> None:
    """Row and column of each place of the vision tower's square grid as sines and cosines, in `table` (side^2, width).

    The periods go from the whole side down to four places, so that neighbours differ and the far end does not return.
    """
    import torch

    side, frequencies = math.isqrt(table.shape[0]), table.shape[1] // 4
    place = torch.linspace(0, 1, side)
    angles = place[:, None] * math.pi * torch.logspace(0, math.log10(side / 2), frequencies)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width / 2)
    rows, columns = waves.repeat_interleave(side, 0), waves.repeat(side, 1)
    table[:, : 4 * frequencies] = (amplitude * torch.cat([columns, rows], dim=1)).to(table.dtype)


def _model_config(architecture: ArchitectureConfig) -> Any:
    from gr00t.model.config import released_config

    elsewhere = ("backbone", "image_size", "sinusoidal_positions")
    values = {name: value for name, value in asdict(architecture).items() if name not in elsewhere}
    values["diffusion_model_cfg"] = {**DEFAULT_DIFFUSION_MODEL, **values.pop("diffusion_model")}
    attention = values.pop("vl_self_attention")
    values["vl_self_attention_cfg"] = attention and {**RELEASED_VL_SELF_ATTENTION, **attention}
    return released_config(**values)


def architecture_json(architecture: ArchitectureConfig, special_tokens: dict[str, int]) -> dict[str, Any]:
    """The backbone's architecture, with the small tokenizer's control tokens."""
    tokens = {
        "image_token_id": special_tokens["<|image_pad|>"],
        "video_token_id": special_tokens["<|video_pad|>"],
        "vision_start_token_id": special_tokens["<|vision_start|>"],
        "vision_end_token_id": special_tokens["<|vision_end|>"],
    }
    if architecture.backbone is None:
        return {**QWEN3_VL_2B, **tokens}
    shape = asdict(architecture.backbone)
    text = {**shape["text"], "vocab_size": shape["vocab_size"], "tie_word_embeddings": True}
    sections = text.pop("mrope_section")
    text["rope_scaling"] = {"mrope_interleaved": True, "mrope_section": sections, "rope_type": "default"}
    described = {"model_type": "qwen3_vl", "tie_word_embeddings": True, **tokens}
    return {**described, "text_config": text, "vision_config": shape["vision"]}


def write_small_tokenizer(folder: Path) -> dict[str, int]:
    """A byte-level BPE with Qwen's control tokens, trained here on a few instructions; ids of the control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + 128 + len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    _add_words(tokenizer, [*VERBS.split(), *(f" {word}" for word in WORDS.split())])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=32768,
    )
    fast.chat_template = CHAT_TEMPLATE
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(str(folder))
    return {token: fast.get_vocab()[token] for token in SPECIAL_TOKENS}


def _add_words(tokenizer: Tokenizer, words: Sequence[str]) -> None:
    """Merges that make one token of each word. They come last: all else is cut up as before, into the same ids."""
    from tokenizers import models

    state = json.loads(tokenizer.to_str())["model"]
    vocabulary, merges = state["vocab"], [tuple(pair) for pair in state["merges"]]
    for word in words:
        begun, *rest = tokenizer.encode(word).tokens
        for piece in rest:
            merges.append((begun, piece))
            begun += piece
            vocabulary.setdefault(begun, len(vocabulary))
        tokenizer.model = models.BPE(vocab=vocabulary, merges=merges)


def _write_processor(folder: Path, architecture: ArchitectureConfig) -> None:
    """processor_config.json and its companions: sizes of the model, and no robot."""
    from gr00t.data.processor import Gr00tN1d7Processor

    size = architecture.image_size
    config = ProcessorConfig(
        modality_configs={},
        # as in the release; LeRobot takes crop_fraction for this target size only
        image_crop_size=[int(size * 0.9)] * 2,
        image_target_size=[size] * 2,
        shortest_image_edge=size,
        model_name=architecture.model_name,
        max_state_dim=architecture.max_state_dim,
        max_action_dim=architecture.max_action_dim,
        max_action_horizon=architecture.action_horizon,
        apply_sincos_state_encoding=False,
    )
    ids = {tag.value: default_projector_index(tag) for tag in EmbodimentTag}
    vlm = VlmTokenizer(folder / "processor" / "vlm")
    vlm.limits = replace(vlm.limits, min_pixels=min(vlm.limits.min_pixels, size**2))  # else views are enlarged to 256
    Gr00tN1d7Processor(ProcessorFiles(config, {}, ids), vlm).save_pretrained(folder)


def main(config: CreateBaseConfig) -> None:
    out = create_base(config)
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) / 1e6
    print(f"{out}: the {config.model.name} model with random weights (seed {config.seed}), {size:,.1f} MB.")
    print("It is for trying things out, not for robots.")


if __name__ == "__main__":
    run_main(main, "create_base")
