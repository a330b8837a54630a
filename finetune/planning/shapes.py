"""Every tensor of the model and its shape, out of a checkpoint's headers or out of an architecture's numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune.config.schema import ArchitectureConfig
from gr00t.errors import ToolkitError
from gr00t.model.checkpoint_folder import weight_files
from gr00t.model.checkpoint_kind import read_config_json
from gr00t.model.lerobot import original_name
from gr00t.model.released import DEFAULT_DIFFUSION_MODEL, QWEN3_VL_2B

Tensors = Mapping[str, tuple[int, ...]]

VISION = "backbone.model.model.visual."
LLM = "backbone.model.model.language_model."
EMBEDDINGS = f"{LLM}embed_tokens.weight"
LM_HEAD = "backbone.model.lm_head.weight"
HEAD = "action_head."
DIT = "action_head.model."
VL = "action_head.vl_self_attention."
MAX_SEQ_LEN, TIME_WIDTH, TEMPORAL, MERGE = 1024, 256, 2, 4


@dataclass(frozen=True)
class Shape:
    """The tensors of a model, and what of its configuration they do not show."""

    tensors: Tensors
    horizon: int
    dit_heads: int
    dit_dropout: float
    vl_heads: int
    vl_dropout: float
    text_every: int | None  # every so many cross-attention blocks one looks at the text; None: all at everything
    source: str

    @property
    def width(self) -> int:
        """Of the diffusion transformer."""
        return self.tensors[f"{DIT}proj_out_2.weight"][1]

    @property
    def context(self) -> int:
        """Width of the language model, and so of the backbone's features."""
        return self.tensors[EMBEDDINGS][1]

    @property
    def llm_inner(self) -> int:
        return self.tensors[f"{LLM}layers.0.mlp.gate_proj.weight"][0]

    @property
    def llm_queries(self) -> int:
        return self.tensors[f"{LLM}layers.0.self_attn.q_proj.weight"][0]

    @property
    def llm_keys(self) -> int:
        return self.tensors[f"{LLM}layers.0.self_attn.k_proj.weight"][0]

    @property
    def vision_width(self) -> int:
        return self.tensors[f"{VISION}patch_embed.proj.weight"][0]

    @property
    def vision_inner(self) -> int:
        return self.tensors[f"{VISION}blocks.0.mlp.linear_fc1.weight"][0]

    @property
    def patch_values(self) -> int:
        """Numbers that enter the vision tower for one patch."""
        return numel(self.tensors[f"{VISION}patch_embed.proj.weight"][1:])

    @property
    def action_dim(self) -> int:
        return self.tensors["action_head.action_decoder.layer2.W"][2]

    @property
    def hidden(self) -> int:
        return self.tensors["action_head.action_decoder.layer1.W"][2]

    @cached_property
    def llm_layers(self) -> int:
        return count(self.tensors, f"{LLM}layers.")

    @cached_property
    def vision_blocks(self) -> int:
        return count(self.tensors, f"{VISION}blocks.")

    @cached_property
    def deepstack(self) -> int:
        return count(self.tensors, f"{VISION}deepstack_merger_list.")

    @cached_property
    def dit_blocks(self) -> int:
        return count(self.tensors, f"{DIT}transformer_blocks.")

    def context_of(self, block: int) -> str:
        """What a block of the diffusion transformer attends to: self, all, text or image tokens."""
        if block % 2:
            return "self"
        if self.text_every is None:
            return "all"
        return "image" if block % (2 * self.text_every) else "text"

    @cached_property
    def vl_blocks(self) -> int:
        return count(self.tensors, f"{VL}transformer_blocks.")


def numel(shape: tuple[int, ...]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


def count(tensors: Tensors, prefix: str) -> int:
    """How many numbered modules there are: one more than the highest number after `prefix`."""
    found = (re.match(r"\d+", name[len(prefix) :]) for name in tensors if name.startswith(prefix))
    return max((int(match[0]) for match in found if match), default=-1) + 1


# -- from a checkpoint -------------------------------------------------------------------------------------------------


def shape_of_checkpoint(folder: Path) -> Shape:
    """From the headers of a checkpoint's weight files and its config.json; no weight is read."""
    config = read_config_json(folder)
    tensors: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        tensors.update(_header(path))
    tied = tensors.pop(LM_HEAD, None)
    if tied is not None:
        tensors.setdefault(EMBEDDINGS, tied)
    dit = {**DEFAULT_DIFFUSION_MODEL, **(config.get("diffusion_model_cfg") or {})}
    vl = config.get("vl_self_attention_cfg") or {}
    shape = Shape(
        tensors,
        horizon=int(config.get("action_horizon", 40)),
        dit_heads=int(dit["num_attention_heads"]),
        dit_dropout=float(dit["dropout"]),
        vl_heads=int(vl.get("num_attention_heads", 1)),
        vl_dropout=float(vl.get("dropout", 0.1)),
        text_every=int(config.get("attend_text_every_n_blocks", 2))
        if config.get("use_alternate_vl_dit", True)
        else None,
        source=f"{folder} (headers of its weight files)",
    )
    try:
        _ = (shape.width, shape.context, shape.llm_inner, shape.vision_inner, shape.action_dim, shape.vision_width)
    except KeyError as error:
        raise ToolkitError(
            f"{folder} lacks the tensor {error}: it is no whole N1.7 checkpoint. Copy it anew."
        ) from None
    return shape


def _header(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - a handle, not a dict
                yield original_name(name), tuple(file.get_slice(name).get_shape())
    except (SafetensorError, OSError) as error:
        raise ToolkitError(f"{path} is damaged or cut short ({error}). Download it anew.") from None


# -- from numbers ------------------------------------------------------------------------------------------------------


def shape_of_architecture(architecture: ArchitectureConfig) -> Shape:
    """What `python -m finetune.create_base` would make of these numbers."""
    text, vision = _backbone_numbers(architecture)
    tensors: dict[str, tuple[int, ...]] = {}
    tensors.update(_vision(vision))
    tensors.update(_llm(text, architecture.select_layer))
    tensors.update(_head(architecture))
    dit, vl = architecture.diffusion_model, architecture.vl_self_attention
    return Shape(
        tensors,
        horizon=architecture.action_horizon,
        dit_heads=dit.num_attention_heads,
        dit_dropout=dit.dropout,
        vl_heads=vl.num_attention_heads if vl else 1,
        vl_dropout=vl.dropout if vl else 0.0,
        text_every=architecture.attend_text_every_n_blocks,
        source="model.architecture (there are no weights yet)",
    )


def _backbone_numbers(architecture: ArchitectureConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    backbone = architecture.backbone
    if backbone is None:
        return QWEN3_VL_2B["text_config"], QWEN3_VL_2B["vision_config"]
    return {**vars(backbone.text), "vocab_size": backbone.vocab_size}, vars(backbone.vision)


def _linear(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _vision(v: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner, patch = v["hidden_size"], v["intermediate_size"], v["patch_size"]
    yield f"{VISION}patch_embed.proj.weight", (width, 3, TEMPORAL, patch, patch)
    yield f"{VISION}patch_embed.proj.bias", (width,)
    yield f"{VISION}pos_embed.weight", (v["num_position_embeddings"], width)
    for block in (f"{VISION}blocks.{i}." for i in range(v["depth"])):
        yield from _norm(f"{block}norm1", width)
        yield from _norm(f"{block}norm2", width)
        yield from _linear(f"{block}attn.qkv", 3 * width, width)
        yield from _linear(f"{block}attn.proj", width, width)
        yield from _linear(f"{block}mlp.linear_fc1", inner, width)
        yield from _linear(f"{block}mlp.linear_fc2", width, inner)
    deepstack = [f"deepstack_merger_list.{i}" for i in range(len(v["deepstack_visual_indexes"]))]
    for merger in ("merger", *deepstack):
        yield from _norm(f"{VISION}{merger}.norm", width if merger == "merger" else MERGE * width)
        yield from _linear(f"{VISION}{merger}.linear_fc1", MERGE * width, MERGE * width)
        yield from _linear(f"{VISION}{merger}.linear_fc2", v["out_hidden_size"], MERGE * width)


def _llm(t: dict[str, Any], layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner, head = t["hidden_size"], t["intermediate_size"], t["head_dim"]
    queries, keys = t["num_attention_heads"] * head, t["num_key_value_heads"] * head
    yield EMBEDDINGS, (t["vocab_size"], width)
    for layer in (f"{LLM}layers.{i}." for i in range(layers)):
        yield f"{layer}self_attn.q_proj.weight", (queries, width)
        yield f"{layer}self_attn.k_proj.weight", (keys, width)
        yield f"{layer}self_attn.v_proj.weight", (keys, width)
        yield f"{layer}self_attn.o_proj.weight", (width, queries)
        yield f"{layer}self_attn.q_norm.weight", (head,)
        yield f"{layer}self_attn.k_norm.weight", (head,)
        yield f"{layer}mlp.gate_proj.weight", (inner, width)
        yield f"{layer}mlp.up_proj.weight", (inner, width)
        yield f"{layer}mlp.down_proj.weight", (width, inner)
        yield f"{layer}input_layernorm.weight", (width,)
        yield f"{layer}post_attention_layernorm.weight", (width,)
    yield f"{LLM}norm.weight", (width,)


def _head(a: ArchitectureConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, context, dit = a.input_embedding_dim, a.backbone_embedding_dim, a.diffusion_model
    yield from _linear(f"{DIT}timestep_encoder.timestep_embedder.linear_1", width, TIME_WIDTH)
    yield from _linear(f"{DIT}timestep_encoder.timestep_embedder.linear_2", width, width)
    for number in range(dit.num_layers):
        block = f"{DIT}transformer_blocks.{number}."
        yield from _linear(f"{block}norm1.linear", 2 * width, width)
        yield from _block(block, width, width if number % 2 else context)
    yield from _linear(f"{DIT}proj_out_1", 2 * width, width)
    yield from _linear(f"{DIT}proj_out_2", dit.output_dim, width)
    yield from _embodiments("state_encoder.layer1", a, a.max_state_dim, a.hidden_size)
    yield from _embodiments("state_encoder.layer2", a, a.hidden_size, width)
    yield from _embodiments("action_encoder.W1", a, a.max_action_dim, width)
    yield from _embodiments("action_encoder.W2", a, 2 * width, width)
    yield from _embodiments("action_encoder.W3", a, width, width)
    yield from _embodiments("action_decoder.layer1", a, a.hidden_size, a.hidden_size)
    yield from _embodiments("action_decoder.layer2", a, a.hidden_size, a.max_action_dim)
    yield from _norm(f"{HEAD}vlln", context)
    for number in range(a.vl_self_attention.num_layers if a.vl_self_attention else 0):
        block = f"{VL}transformer_blocks.{number}."
        yield from _norm(f"{block}norm1", context)
        yield from _norm(f"{block}norm3", context)
        yield from _block(block, context, context)
    yield f"{HEAD}position_embedding.weight", (MAX_SEQ_LEN, width)


def _block(block: str, width: int, context: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _linear(f"{block}attn1.to_q", width, width)
    yield from _linear(f"{block}attn1.to_k", width, context)
    yield from _linear(f"{block}attn1.to_v", width, context)
    yield from _linear(f"{block}attn1.to_out.0", width, width)
    yield from _linear(f"{block}ff.net.0.proj", 4 * width, width)
    yield from _linear(f"{block}ff.net.2", width, 4 * width)


def _embodiments(
    name: str, architecture: ArchitectureConfig, inputs: int, outputs: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    robots = architecture.max_num_embodiments
    yield f"{HEAD}{name}.W", (robots, inputs, outputs)
    yield f"{HEAD}{name}.b", (robots, outputs)
