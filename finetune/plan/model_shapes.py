"""Every tensor of the model with its shape, from a checkpoint's headers or from an architecture's numbers, and which of
them are trained, by the rules of Gr00tN1d7.set_trainable, keep_embodiments and finetune/training/optimizer.py."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from finetune.recipe.model_config import ArchitectureConfig
from finetune.recipe.train_config import LoraConfig, TrainConfig, TuneConfig
from gr00t.errors import ToolkitError
from gr00t.model.architecture import DEFAULT_DIFFUSION_MODEL, QWEN3_VL_2B
from gr00t.model.checkpoint_folder import original_name, read_config_json, weight_files

NamedShape = tuple[str, tuple[int, ...]]

VISION = "backbone.model.model.visual."
LLM = "backbone.model.model.language_model."
EMBEDDINGS = f"{LLM}embed_tokens.weight"
LM_HEAD = "backbone.model.lm_head.weight"
UNUSED = f"{LLM}norm.weight"  # stored, never applied, never trained
BUFFER = ".pe"  # sinusoids, stored with the weights
HEAD = "action_head."
DIT = "action_head.model."
VL = "action_head.vl_self_attention."
GROUPS = {
    "projector": tuple(
        f"{HEAD}{part}." for part in ("state_encoder", "action_encoder", "action_decoder", "position_embedding")
    ),
    "diffusion_model": (DIT,),
    "vlln": (f"{HEAD}vlln.", VL),
    "llm": (LLM,),
    "visual": (VISION,),
}
MAX_SEQ_LEN, TIME_WIDTH, TEMPORAL, MERGE = 1024, 256, 2, 4

_EMBODIMENT = re.compile(r"action_head\.(state_encoder|action_encoder|action_decoder)\..*\.[Wb]")
_LAYER = re.compile(rf"{re.escape(LLM)}layers\.(\d+)\.")


@dataclass(frozen=True)
class Shape:
    """The tensors of a model, their sizes that matter here, and what of its configuration they do not show."""

    tensors: Mapping[str, tuple[int, ...]]
    width: int  # of the diffusion transformer
    context: int  # width of the language model, and so of the backbone's features
    llm_inner: int
    llm_queries: int
    llm_keys: int
    llm_layers: int
    vision_width: int
    vision_inner: int
    vision_blocks: int
    patch_values: int  # numbers that enter the vision tower for one patch
    deepstack: int
    action_dim: int
    hidden: int
    dit_blocks: int
    vl_blocks: int
    horizon: int
    dit_heads: int
    dit_dropout: float
    vl_heads: int
    vl_dropout: float
    text_every: int | None  # every so many cross-attention blocks one looks at the text; None: all at everything
    source: str

    def context_of(self, block: int) -> str:
        """What a block of the diffusion transformer attends to: self, all, text or image tokens."""
        if block % 2:
            return "self"
        if self.text_every is None:
            return "all"
        return "image" if block % (2 * self.text_every) else "text"


def _shape(tensors: Mapping[str, tuple[int, ...]], **of_configuration: Any) -> Shape:
    """The sizes of the tensors; KeyError where one is missing."""

    def count(prefix: str) -> int:
        """How many numbered modules there are: one more than the highest number after `prefix`."""
        found = (re.match(r"\d+", name[len(prefix) :]) for name in tensors if name.startswith(prefix))
        return max((int(match[0]) for match in found if match), default=-1) + 1

    return Shape(
        tensors,
        width=tensors[f"{DIT}proj_out_2.weight"][1],
        context=tensors[EMBEDDINGS][1],
        llm_inner=tensors[f"{LLM}layers.0.mlp.gate_proj.weight"][0],
        vision_inner=tensors[f"{VISION}blocks.0.mlp.linear_fc1.weight"][0],
        action_dim=tensors[f"{HEAD}action_decoder.layer2.W"][2],
        vision_width=tensors[f"{VISION}patch_embed.proj.weight"][0],
        patch_values=prod(tensors[f"{VISION}patch_embed.proj.weight"][1:]),
        llm_queries=tensors[f"{LLM}layers.0.self_attn.q_proj.weight"][0],
        llm_keys=tensors[f"{LLM}layers.0.self_attn.k_proj.weight"][0],
        hidden=tensors[f"{HEAD}action_decoder.layer1.W"][2],
        llm_layers=count(f"{LLM}layers."),
        vision_blocks=count(f"{VISION}blocks."),
        deepstack=count(f"{VISION}deepstack_merger_list."),
        dit_blocks=count(f"{DIT}transformer_blocks."),
        vl_blocks=count(f"{VL}transformer_blocks."),
        **of_configuration,
    )


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
    alternate = config.get("use_alternate_vl_dit", True)
    try:
        return _shape(
            tensors,
            horizon=int(config.get("action_horizon", 40)),
            dit_heads=int(dit["num_attention_heads"]),
            dit_dropout=float(dit["dropout"]),
            vl_heads=int(vl.get("num_attention_heads", 1)),
            vl_dropout=float(vl.get("dropout", 0.1)),
            text_every=int(config.get("attend_text_every_n_blocks", 2)) if alternate else None,
            source=f"{folder} (headers of its weight files)",
        )
    except KeyError as error:
        raise ToolkitError(
            f"{folder} lacks the tensor {error}: it is no whole N1.7 checkpoint. Copy it anew."
        ) from None


def _header(path: Path) -> Iterator[NamedShape]:
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
    backbone = architecture.backbone
    if backbone is None:
        text, vision = QWEN3_VL_2B["text_config"], QWEN3_VL_2B["vision_config"]
    else:
        text, vision = {**vars(backbone.text), "vocab_size": backbone.vocab_size}, vars(backbone.vision)
    tensors = dict([*_vision(vision), *_llm(text, architecture.select_layer), *_head(architecture)])
    dit, vl = architecture.diffusion_model, architecture.vl_self_attention
    return _shape(
        tensors,
        horizon=architecture.action_horizon,
        dit_heads=dit.num_attention_heads,
        dit_dropout=dit.dropout,
        vl_heads=vl.num_attention_heads if vl else 1,
        vl_dropout=vl.dropout if vl else 0.0,
        text_every=architecture.attend_text_every_n_blocks,
        source="model.architecture (there are no weights yet)",
    )


def _affine(name: str, *sides: int) -> Iterator[NamedShape]:
    """A linear layer (outputs, inputs) or a norm (width), with its bias."""
    yield f"{name}.weight", sides
    yield f"{name}.bias", (sides[0],)


def _vision(v: dict[str, Any]) -> Iterator[NamedShape]:
    width, inner, patch = v["hidden_size"], v["intermediate_size"], v["patch_size"]
    yield f"{VISION}patch_embed.proj.weight", (width, 3, TEMPORAL, patch, patch)
    yield f"{VISION}patch_embed.proj.bias", (width,)
    yield f"{VISION}pos_embed.weight", (v["num_position_embeddings"], width)
    for block in (f"{VISION}blocks.{i}." for i in range(v["depth"])):
        yield from _affine(f"{block}norm1", width)
        yield from _affine(f"{block}norm2", width)
        yield from _affine(f"{block}attn.qkv", 3 * width, width)
        yield from _affine(f"{block}attn.proj", width, width)
        yield from _affine(f"{block}mlp.linear_fc1", inner, width)
        yield from _affine(f"{block}mlp.linear_fc2", width, inner)
    deepstack = [f"deepstack_merger_list.{i}" for i in range(len(v["deepstack_visual_indexes"]))]
    for merger in ("merger", *deepstack):
        yield from _affine(f"{VISION}{merger}.norm", width if merger == "merger" else MERGE * width)
        yield from _affine(f"{VISION}{merger}.linear_fc1", MERGE * width, MERGE * width)
        yield from _affine(f"{VISION}{merger}.linear_fc2", v["out_hidden_size"], MERGE * width)


def _llm(t: dict[str, Any], layers: int) -> Iterator[NamedShape]:
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


def _head(a: ArchitectureConfig) -> Iterator[NamedShape]:
    width, context, dit = a.input_embedding_dim, a.backbone_embedding_dim, a.diffusion_model
    yield from _affine(f"{DIT}timestep_encoder.timestep_embedder.linear_1", width, TIME_WIDTH)
    yield from _affine(f"{DIT}timestep_encoder.timestep_embedder.linear_2", width, width)
    for number in range(dit.num_layers):
        block = f"{DIT}transformer_blocks.{number}."
        yield from _affine(f"{block}norm1.linear", 2 * width, width)
        yield from _block(block, width, width if number % 2 else context)
    yield from _affine(f"{DIT}proj_out_1", 2 * width, width)
    yield from _affine(f"{DIT}proj_out_2", dit.output_dim, width)
    for name, inputs, outputs in (
        ("state_encoder.layer1", a.max_state_dim, a.hidden_size),
        ("state_encoder.layer2", a.hidden_size, width),
        ("action_encoder.W1", a.max_action_dim, width),
        ("action_encoder.W2", 2 * width, width),
        ("action_encoder.W3", width, width),
        ("action_decoder.layer1", a.hidden_size, a.hidden_size),
        ("action_decoder.layer2", a.hidden_size, a.max_action_dim),
    ):
        yield f"{HEAD}{name}.W", (a.max_num_embodiments, inputs, outputs)
        yield f"{HEAD}{name}.b", (a.max_num_embodiments, outputs)
    yield from _affine(f"{HEAD}vlln", context)
    for number in range(a.vl_self_attention.num_layers if a.vl_self_attention else 0):
        block = f"{VL}transformer_blocks.{number}."
        yield from _affine(f"{block}norm1", context)
        yield from _affine(f"{block}norm3", context)
        yield from _block(block, context, context)
    yield f"{HEAD}position_embedding.weight", (MAX_SEQ_LEN, width)


def _block(block: str, width: int, context: int) -> Iterator[NamedShape]:
    yield from _affine(f"{block}attn1.to_q", width, width)
    yield from _affine(f"{block}attn1.to_k", width, context)
    yield from _affine(f"{block}attn1.to_v", width, context)
    yield from _affine(f"{block}attn1.to_out.0", width, width)
    yield from _affine(f"{block}ff.net.0.proj", 4 * width, width)
    yield from _affine(f"{block}ff.net.2", width, 4 * width)


# -- what is trained ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """One tensor: how many numbers a GPU holds of it, how many wait in host memory, whether it is trained."""

    name: str
    group: str
    count: int
    waiting: int
    trained: bool
    matrix: bool


def parameters(shape: Shape, train: TrainConfig) -> list[Parameter]:
    """Every tensor as training holds it. The weights of robots that are not trained wait in host memory."""
    found = []
    for name, sides in shape.tensors.items():
        group = next((g for g, prefixes in GROUPS.items() if name.startswith(prefixes)), "other")
        whole = prod(sides)
        one_robot = _EMBODIMENT.fullmatch(name) and not train.tune.all_embodiments
        kept = whole // sides[0] if one_robot else whole
        trained = _is_trained(name, group, shape, train.tune)
        found.append(Parameter(name, group, kept, whole if kept < whole else 0, trained, matrix=len(sides) > 1))
    return [*found, *_adapters(shape, train.lora)]


def _is_trained(name: str, group: str, shape: Shape, tune: TuneConfig) -> bool:
    if name == UNUSED or name.endswith(BUFFER):
        return False
    layer = _LAYER.match(name)
    if layer and int(layer[1]) >= shape.llm_layers - tune.top_llm_layers:
        return True
    return bool(getattr(tune, group, False))


def _adapters(shape: Shape, lora: LoraConfig) -> Iterator[Parameter]:
    """Two tensors beside each chosen product of the language model, under peft's names."""
    if lora.rank is None:
        return
    for name, sides in shape.tensors.items():
        product = name.removesuffix(".weight")
        if _LAYER.match(name) and product.rpartition(".")[2] in lora.targets:
            for half, count in (("A", lora.rank * sides[1]), ("B", lora.rank * sides[0])):
                adapter = f"{product}.lora_{half}.default.weight"
                yield Parameter(adapter, "lora", count, 0, trained=True, matrix=True)


@dataclass(frozen=True)
class GroupCount:
    """Numbers of one group that a GPU holds; `waiting` ones are in host memory, for the finished checkpoint."""

    group: str
    trained: int
    frozen: int
    waiting: int


def by_group(found: list[Parameter]) -> list[GroupCount]:
    """Counts of each group, in the order of GROUPS."""
    counts, order = [], [*GROUPS, "lora", "other"]
    for group in dict.fromkeys(p.group for p in sorted(found, key=lambda p: order.index(p.group))):
        own = [p for p in found if p.group == group]
        trained, frozen = (sum(p.count for p in own if p.trained is kind) for kind in (True, False))
        counts.append(GroupCount(group, trained, frozen, sum(p.waiting for p in own)))
    return counts
