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
from finetune.recipe.train_config import LoraConfig, TrainConfig
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
    "projector": tuple(f"{HEAD}{part}_" for part in ("state", "action", "position")),  # encoders, decoder, positions
    "diffusion_model": (DIT,),
    "vlln": (f"{HEAD}vlln.", VL),
    "llm": (LLM,),
    "visual": (VISION,),
}
TEXT_EVERY = "attend_text_every_n_blocks"
MAX_SEQ_LEN, TIME_WIDTH, TEMPORAL, MERGE = 1024, 256, 2, 4

_EMBODIMENT = re.compile(r"action_head\.(state|action)_.*\.[Wb]")
_LAYER = re.compile(rf"{re.escape(LLM)}layers\.(\d+)\.")


def _side(tensor: str, place: int) -> Any:
    """A size that stands in the shape of a tensor."""
    return property(lambda shape: shape.tensors[tensor][place])


def _count(prefix: str) -> Any:
    """How many modules are numbered after `prefix`."""
    number = re.compile(rf"{re.escape(prefix)}(\d+)")
    return property(lambda shape: len(set(number.findall(" ".join(shape.tensors)))))


@dataclass(frozen=True)
class Shape:
    """The tensors of a model, what of its configuration they do not show, and the sizes that they do.

    KeyError where a tensor is missing that a size is read from.
    """

    tensors: Mapping[str, tuple[int, ...]]
    horizon: int
    dit_heads: int
    dit_dropout: float
    vl_heads: int
    vl_dropout: float
    text_every: int | None  # every so many cross-attention blocks one looks at the text; None: all at everything
    source: str

    width = _side(f"{DIT}proj_out_2.weight", 1)  # of the diffusion transformer
    context = _side(EMBEDDINGS, 1)  # width of the language model, and so of the backbone's features
    llm_inner = _side(f"{LLM}layers.0.mlp.gate_proj.weight", 0)
    llm_queries = _side(f"{LLM}layers.0.self_attn.q_proj.weight", 0)
    llm_keys = _side(f"{LLM}layers.0.self_attn.k_proj.weight", 0)
    vision_width = _side(f"{VISION}patch_embed.proj.weight", 0)
    vision_inner = _side(f"{VISION}blocks.0.mlp.linear_fc1.weight", 0)
    hidden = _side(f"{HEAD}action_decoder.layer1.W", 2)
    action_dim = _side(f"{HEAD}action_decoder.layer2.W", 2)
    llm_layers = _count(f"{LLM}layers.")
    vision_blocks = _count(f"{VISION}blocks.")
    deepstack = _count(f"{VISION}deepstack_merger_list.")
    dit_blocks = _count(f"{DIT}transformer_blocks.")
    vl_blocks = _count(f"{VL}transformer_blocks.")

    def __post_init__(self) -> None:
        for name, size in vars(Shape).items():
            if isinstance(size, property):
                getattr(self, name)

    @property
    def patch_values(self) -> int:
        """Numbers that enter the vision tower for one patch."""
        return prod(self.tensors[f"{VISION}patch_embed.proj.weight"][1:])

    def context_of(self, block: int) -> str:
        """What a block of the diffusion transformer attends to: self, all, text or image tokens."""
        if block % 2:
            return "self"
        if self.text_every is None:
            return "all"
        return "image" if block % (2 * self.text_every) else "text"


# -- from a checkpoint -------------------------------------------------------------------------------------------------


def shape_of_checkpoint(folder: Path) -> Shape:
    """From the headers of a checkpoint's weight files and its config.json; no weight is read."""
    config = read_config_json(folder)
    tensors = dict(tensor for path in weight_files(folder) for tensor in _header(path))
    tied = tensors.pop(LM_HEAD, None)
    if tied is not None:
        tensors.setdefault(EMBEDDINGS, tied)
    try:
        dit = {**DEFAULT_DIFFUSION_MODEL, **(config.get("diffusion_model_cfg") or {})}
        vl = config.get("vl_self_attention_cfg") or {}
        alternate = config.get("use_alternate_vl_dit", True)
        return Shape(
            tensors,
            horizon=_positive("action_horizon", config.get("action_horizon", 40)),
            dit_heads=_positive("num_attention_heads", dit["num_attention_heads"]),
            dit_dropout=float(dit["dropout"]),
            vl_heads=int(vl.get("num_attention_heads", 1)),
            vl_dropout=float(vl.get("dropout", 0.1)),
            text_every=_positive(TEXT_EVERY, config.get(TEXT_EVERY, 2)) if alternate else None,
            source=f"{folder} (headers of its weight files)",
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ToolkitError(f"{folder}/config.json makes no sense ({error}). Copy it again.") from error
    except KeyError as error:
        raise ToolkitError(
            f"{folder} lacks the tensor {error}: it is no whole N1.7 checkpoint. Copy it again."
        ) from None


def _positive(name: str, value: Any) -> int:
    if int(value) < 1:
        raise ValueError(f"{name} is {value}")
    return int(value)


def _header(path: Path) -> Iterator[NamedShape]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - a handle, not a dict
                yield original_name(name), tuple(file.get_slice(name).get_shape())
    except (SafetensorError, OSError) as error:
        raise ToolkitError(f"{path} is damaged or cut short ({error}). Download it again.") from None


# -- from numbers ------------------------------------------------------------------------------------------------------


def shape_of_architecture(architecture: ArchitectureConfig) -> Shape:
    """What `python -m finetune.create_base` would make of these numbers."""
    backbone, dit, vl = architecture.backbone, architecture.diffusion_model, architecture.vl_self_attention
    if backbone is None:
        text, vision = QWEN3_VL_2B["text_config"], QWEN3_VL_2B["vision_config"]
    else:
        text, vision = {**vars(backbone.text), "vocab_size": backbone.vocab_size}, vars(backbone.vision)
    return Shape(
        dict([*_vision(vision), *_llm(text, architecture.select_layer), *_head(architecture)]),
        horizon=architecture.action_horizon,
        dit_heads=dit.num_attention_heads,
        dit_dropout=dit.dropout,
        vl_heads=vl.num_attention_heads if vl else 1,
        vl_dropout=vl.dropout if vl else 0.0,
        text_every=architecture.attend_text_every_n_blocks,
        source="model.architecture (there are no weights yet)",
    )


def _weights(prefix: str, shapes: Mapping[str, tuple[int, ...]], *, bias: bool = True) -> Iterator[NamedShape]:
    """Linear layers (outputs, inputs) and norms (width), those of one shape in one entry ("to_k to_v")."""
    for names, sides in shapes.items():
        for name in names.split():
            yield f"{prefix}{name}.weight", sides
            if bias:
                yield f"{prefix}{name}.bias", sides[:1]


def _vision(v: dict[str, Any]) -> Iterator[NamedShape]:
    width, inner, patch = v["hidden_size"], v["intermediate_size"], v["patch_size"]
    yield from _weights(f"{VISION}patch_embed.", {"proj": (width, 3, TEMPORAL, patch, patch)})
    yield f"{VISION}pos_embed.weight", (v["num_position_embeddings"], width)
    block = {
        "norm1 norm2": (width,),
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.linear_fc1": (inner, width),
        "mlp.linear_fc2": (width, inner),
    }
    for number in range(v["depth"]):
        yield from _weights(f"{VISION}blocks.{number}.", block)
    merger = {"linear_fc1": (MERGE * width, MERGE * width), "linear_fc2": (v["out_hidden_size"], MERGE * width)}
    yield from _weights(f"{VISION}merger.", {"norm": (width,), **merger})
    for number in range(len(v["deepstack_visual_indexes"])):
        yield from _weights(f"{VISION}deepstack_merger_list.{number}.", {"norm": (MERGE * width,), **merger})


def _llm(t: dict[str, Any], layers: int) -> Iterator[NamedShape]:
    width, inner, head = t["hidden_size"], t["intermediate_size"], t["head_dim"]
    queries, keys = t["num_attention_heads"] * head, t["num_key_value_heads"] * head
    yield EMBEDDINGS, (t["vocab_size"], width)
    layer = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "self_attn.q_norm self_attn.k_norm": (head,),
        "mlp.gate_proj mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "input_layernorm post_attention_layernorm": (width,),
    }
    for number in range(layers):
        yield from _weights(f"{LLM}layers.{number}.", layer, bias=False)
    yield UNUSED, (width,)


def _head(a: ArchitectureConfig) -> Iterator[NamedShape]:
    width, context, dit, vl = a.input_embedding_dim, a.backbone_embedding_dim, a.diffusion_model, a.vl_self_attention
    timestep = {"linear_1": (width, TIME_WIDTH), "linear_2": (width, width)}
    yield from _weights(f"{DIT}timestep_encoder.timestep_embedder.", timestep)
    for number in range(dit.num_layers):
        block = _block(width, width if number % 2 else context)
        yield from _weights(f"{DIT}transformer_blocks.{number}.", {"norm1.linear": (2 * width, width), **block})
    yield from _weights(DIT, {"proj_out_1": (2 * width, width), "proj_out_2": (dit.output_dim, width)})
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
    yield from _weights(HEAD, {"vlln": (context,)})
    for number in range(vl.num_layers if vl else 0):
        block = {"norm1 norm3": (context,), **_block(context, context)}
        yield from _weights(f"{VL}transformer_blocks.{number}.", block)
    yield f"{HEAD}position_embedding.weight", (MAX_SEQ_LEN, width)


def _block(width: int, context: int) -> dict[str, tuple[int, ...]]:
    """Attention and feed-forward of a block of the head; width of what it attends to: `context`."""
    return {
        "attn1.to_q attn1.to_out.0": (width, width),
        "attn1.to_k attn1.to_v": (width, context),
        "ff.net.0.proj": (4 * width, width),
        "ff.net.2": (width, 4 * width),
    }


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
    found, first_trained = [], shape.llm_layers - train.tune.top_llm_layers
    for name, sides in shape.tensors.items():
        group = next((g for g, prefixes in GROUPS.items() if name.startswith(prefixes)), "other")
        whole = prod(sides)
        one_robot = _EMBODIMENT.fullmatch(name) and not train.tune.all_embodiments
        kept = whole // sides[0] if one_robot else whole
        layer = _LAYER.match(name)
        trained = getattr(train.tune, group, False) or (layer is not None and int(layer[1]) >= first_trained)
        trained = trained and name != UNUSED and not name.endswith(BUFFER)
        found.append(Parameter(name, group, kept, whole if kept < whole else 0, trained, matrix=len(sides) > 1))
    return [*found, *_adapters(shape, train.lora)]


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


@dataclass
class GroupCount:
    """Numbers of one group that a GPU holds; `waiting` ones are in host memory, for the finished checkpoint."""

    group: str
    trained: int = 0
    frozen: int = 0
    waiting: int = 0


def by_group(found: list[Parameter]) -> list[GroupCount]:
    """Counts of each group, in the order of GROUPS."""
    counts = {group: GroupCount(group) for group in (*GROUPS, "lora", "other") if any(p.group == group for p in found)}
    for p in found:
        own = counts[p.group]
        own.trained += p.count if p.trained else 0
        own.frozen += 0 if p.trained else p.count
        own.waiting += p.waiting
    return list(counts.values())
