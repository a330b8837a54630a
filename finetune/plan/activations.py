"""What a training step keeps for its backward, and what passes through memory while it runs: bytes, stage by stage.

Derived from the code of gr00t/model (dit.py, action_head.py, backbone.py, cpu_kernels.py) and checked against the
tensors that autograd really saves (tests/test_plan_memory.py). Per token of a transformer block, in numbers of its
width: the two norms' inputs, the norm's result before the timestep scales it, the inputs of all products, queries (and
keys and values), both sides of the GELU, and the masks of four dropouts, one byte each (on a CPU three of two bytes).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from finetune.plan.model_shapes import DIT, EMBEDDINGS, HEAD, LLM, VISION, VL, Parameter, Shape

FP32 = 4
FEATURES, KEYS = "backbone's features", "keys and values"  # stages that memory.py treats apart
SECOND = "ff.net.2.weight"  # of a feed-forward, whose wide half a CPU computes again in the backward
CPU_AT_ONCE = 4  # samples of a forward of the frozen backbone, as in gr00t/model/cpu_kernels.py
VISION_HEAD = 64  # width of a head of Qwen3-VL's vision tower
PIXELS = 768  # numbers of a patch before the vision tower's temporal doubling


@dataclass(frozen=True)
class Batch:
    """One micro-batch: samples, images of a sample, their side in pixels, text tokens of a sample; how many samples the
    frozen backbone takes at once (None: 4 on a CPU, all on a GPU); and the noised copies of each that the head sees."""

    samples: int
    images: int
    side: int
    text: int
    at_once: int | None = None
    draws: int = 1

    @property
    def noised(self) -> int:
        """Samples of the diffusion transformer."""
        return self.samples * self.draws

    @property
    def image_tokens(self) -> int:
        """Of a sample, in the language model, without its text."""
        return self.images * (self.side // 32) ** 2

    @property
    def tokens(self) -> int:
        """Of a sample, in the language model."""
        return self.image_tokens + self.text

    @property
    def patches(self) -> int:
        """Of a sample, in the vision tower."""
        return 4 * self.image_tokens


@dataclass(frozen=True)
class Kernels:
    """What the device and the precision decide: bytes of a computed number, and what PyTorch keeps there."""

    bf16: bool
    cuda: bool

    @property
    def size(self) -> int:
        """Bytes of a number that a product reads or writes."""
        return 2 if self.bf16 else FP32

    @property
    def norm(self) -> int:
        """Bytes of a norm's result over bf16 features: CUDA's autocast computes norms in fp32, the CPU's does not."""
        return FP32 if self.cuda else self.size


@dataclass(frozen=True)
class Stage:
    """A piece of the forward. Bytes: kept until its backward; passing, while it runs; gradients of its weights; what
    enters it, where it can be computed again in the backward; `again`, what is kept then while it is. `copies` are bf16
    copies of fp32 weights, which autocast keeps until the backward; `brief` ones go when the forward ends."""

    name: str
    kept: int = 0
    passing: int = 0
    gradients: int = 0
    copies: int = 0
    brief: int = 0
    enters: int = 0
    again: int = 0

    def recomputed(self) -> Stage:
        """With activation checkpointing: what enters is kept, the rest comes again in the backward."""
        if not self.enters or not self.kept:
            return self
        copies = self.copies + self.brief
        return replace(self, kept=self.enters, again=self.kept + copies, copies=0, brief=copies)


def stages(shape: Shape, found: list[Parameter], batch: Batch, kernels: Kernels, *, cached: bool) -> list[Stage]:
    """The forward of one micro-batch in order, as it runs with these trained parameters."""
    weights = _Weights([p for p in found if p.trained], kernels)
    begin = [] if cached else _backbone(shape, weights, batch, kernels)
    features = batch.samples * batch.tokens * shape.context * kernels.size
    joined = 0 if cached or (kernels.cuda and not batch.at_once) else features  # from pieces
    graph = any(stage.gradients for stage in begin)
    noised = batch.noised * shape.horizon * shape.width
    encoders = (f"{HEAD}state_encoder", f"{HEAD}action_encoder", f"{HEAD}position_embedding")
    decoded = batch.noised * (shape.horizon + 1)
    decoded *= shape.hidden * (2 * kernels.size + FP32) + 4 * shape.action_dim * FP32
    return [
        *begin,
        Stage(FEATURES, kept=features, passing=joined),
        *_vl_self_attention(shape, weights, batch, kernels, graph),
        weights("encoders", *encoders, kept=noised * (3 * kernels.size + FP32), passing=noised * 3 * FP32),
        *_dit(shape, weights, batch, kernels),
        weights("decoder", f"{HEAD}action_decoder", kept=decoded, passing=decoded),
    ]


@dataclass(frozen=True)
class _Weights:
    """Gradients and bf16 copies of the trained weights below a prefix."""

    trained: list[Parameter]
    kernels: Kernels

    def __call__(self, name: str, *prefixes: str, kept: int, passing: int, enters: int = 0) -> Stage:
        own = [p for p in self.trained if p.name.startswith(prefixes)]
        multiplied = [p for p in own if p.matrix and "embed" not in p.name] if self.kernels.bf16 else []
        brief = 2 * sum(p.count for p in multiplied if not self.kernels.cuda and p.name.endswith(SECOND))
        copies = 2 * sum(p.count for p in multiplied) - brief
        gradients = FP32 * sum(p.count for p in own)
        return Stage(name, kept, passing, gradients, copies, brief, enters, again=brief)

    def any(self, *prefixes: str) -> bool:
        """Whether one of the weights below these prefixes is trained."""
        return any(p.name.startswith(prefixes) for p in self.trained)


# -- the backbone ------------------------------------------------------------------------------------------------------


def _backbone(shape: Shape, weights: _Weights, batch: Batch, kernels: Kernels) -> list[Stage]:
    """Vision tower and language model; frozen parts before the first trained one keep nothing."""
    samples, size, graph = batch.samples, kernels.size, weights.any(VISION)
    if not weights.any("backbone."):
        samples = min(samples, batch.at_once or (samples if kernels.cuda else CPU_AT_ONCE))
    patches, tokens = samples * batch.patches, samples * batch.tokens
    pixels = patches * shape.patch_values * size
    deepstack = shape.deepstack * samples * batch.image_tokens * shape.context * size
    held = pixels + deepstack + (batch.samples - samples) * batch.tokens * shape.context * size  # and pieces before
    # uint8 to patches: two fp32 copies at a time, or one and the patches
    found = [Stage("pixels", passing=patches * max(2 * PIXELS * FP32, (PIXELS + shape.patch_values) * size))]
    passing = patches * _vision_passing(shape, batch, kernels) + held
    kept = shape.vision_width * (2 * kernels.norm + 9 * size) + 2 * shape.vision_inner * size
    kept, enters = patches * kept if graph else 0, patches * shape.vision_width * kernels.norm
    for number in range(shape.vision_blocks):
        found.append(weights("vision tower", f"{VISION}blocks.{number}.", kept=kept, passing=passing, enters=enters))
    rest = (f"{VISION}patch_embed", f"{VISION}pos_embed", f"{VISION}merger", f"{VISION}deepstack")
    found.append(weights("vision tower", *rest, kept=(pixels + 3 * deepstack) if graph else 0, passing=passing))
    passing = tokens * (2 * shape.context + 3 * shape.llm_inner) * size + held
    # RMSNorm keeps an fp32 copy, the result before the weight, and the product's input
    normed = (2 * shape.context + shape.llm_queries + shape.llm_keys) * (2 * size + FP32)
    of_layer = tokens * (normed + 4 * (shape.llm_queries + shape.llm_inner) * size)
    found.append(weights("language model", EMBEDDINGS, kept=0, passing=passing))
    graph = graph or weights.any(EMBEDDINGS)
    for prefix in (f"{LLM}layers.{number}." for number in range(shape.llm_layers)):
        trained = weights.any(prefix)
        graph = graph or trained
        enters = tokens * shape.context * size if trained else 0
        found.append(weights("language model", prefix, kept=of_layer if graph else 0, passing=passing, enters=enters))
    return found


def _vision_passing(shape: Shape, batch: Batch, kernels: Kernels) -> int:
    """Of a patch in a frozen block: the largest of rotating queries and keys in fp32, attention by plain products (bf16
    on a CPU), and the feed-forward."""
    width, size = shape.vision_width, kernels.size
    rotation = width * (6 * size + (5 if kernels.bf16 else 4) * FP32)
    heads = max(1, width // VISION_HEAD) if kernels.bf16 and not kernels.cuda else 0
    attention = 7 * width * size + 2 * heads * (batch.side // 16) ** 2 * size
    return max(rotation, attention, 2 * (width + shape.vision_inner) * size)


# -- the action head ---------------------------------------------------------------------------------------------------


def _vl_self_attention(shape: Shape, weights: _Weights, batch: Batch, kernels: Kernels, graph: bool) -> list[Stage]:
    """vlln and the blocks over all tokens, then the text and image tokens picked out of them."""
    tokens, width = batch.samples * batch.tokens, shape.context
    graph = graph or weights.any(f"{HEAD}vlln", VL)
    scores = _scores(batch.samples, kernels, shape.vl_heads, batch.tokens, batch.tokens)
    kept = tokens * width * _block_kept(kernels, kernels.norm, shape.vl_dropout, adaptive=False, own_keys=True) + scores
    passing = tokens * width * _passing(kernels) + scores
    enters = tokens * width * kernels.norm
    found = [weights("vl_self_attention", f"{HEAD}vlln.", kept=0, passing=enters)]
    for number in range(shape.vl_blocks):
        prefix = f"{VL}transformer_blocks.{number}."
        found.append(weights("vl_self_attention", prefix, kept=kept if graph else 0, passing=passing, enters=enters))
    # keys and values of every cross-attention block, and their inputs where these must be cast to bf16
    casts = 2 * width * kernels.size if kernels.norm != kernels.size else 0
    seen = sum(tokens_seen(shape, batch, block) for block in range(0, shape.dit_blocks, 2))
    keys = seen * (batch.noised * 2 * shape.width * kernels.size + batch.samples * casts)
    return [*found, Stage(KEYS, kept=enters + keys, passing=enters)]


def tokens_seen(shape: Shape, batch: Batch, block: int) -> int:
    """Tokens that a block of the diffusion transformer attends to."""
    seen = {"self": shape.horizon + 1, "all": batch.tokens, "text": batch.text, "image": batch.image_tokens}
    return seen[shape.context_of(block)]


def _dit(shape: Shape, weights: _Weights, batch: Batch, kernels: Kernels) -> list[Stage]:
    """The diffusion transformer over state and actions, whose residual stream is fp32 under autocast too."""
    tokens, width = batch.noised * (shape.horizon + 1), shape.width
    found = []
    for number in range(shape.dit_blocks):
        prefix = f"{DIT}transformer_blocks.{number}."
        own = shape.context_of(number) == "self"
        scores = _scores(batch.noised, kernels, shape.dit_heads, shape.horizon + 1, tokens_seen(shape, batch, number))
        numbers = _block_kept(kernels, FP32, shape.dit_dropout, adaptive=True, own_keys=own)
        passing = tokens * width * _passing(kernels) + scores
        kept, enters = tokens * width * numbers + scores, tokens * width * FP32
        found.append(weights("diffusion transformer", prefix, kept=kept, passing=passing, enters=enters))
    last = tokens * width * (2 * FP32 + kernels.size)
    rest = (f"{DIT}proj_out", f"{DIT}timestep_encoder")
    return [*found, weights("diffusion transformer", *rest, kept=last, passing=last)]


def _block_kept(kernels: Kernels, stream: int, dropout: float, *, adaptive: bool, own_keys: bool) -> int:
    """Bytes a transformer block keeps for each of its numbers of width and token. stream: of the residual."""
    size, mask = kernels.size, (1 if kernels.cuda else 2) if dropout else 0
    inputs = size if stream == size or not own_keys else 3 * size  # one cast for each of queries, keys and values
    attention = stream + (stream if adaptive else 0) + inputs + size * (3 if own_keys else 1) + size + 2 * mask
    wide = 4 * size + 4 * mask if kernels.cuda else 0  # a CPU computes the second half again, with its mask
    feed_forward = stream + size + 4 * size + wide + mask
    return attention + feed_forward


def _passing(kernels: Kernels) -> int:
    """Temporary bytes for each number of a block; on a CPU the feed-forward's second half too."""
    return (6 if kernels.cuda else 8) * kernels.size


def _scores(samples: int, kernels: Kernels, heads: int, queries: int, keys: int) -> int:
    """Attention weights, which plain products keep (in training on a CPU) and fused attention does not."""
    return 0 if kernels.cuda else samples * heads * queries * keys * kernels.size
