"""What the DiT's cross-attention looks at: the text tokens or the image tokens of the VLM, picked out once a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gr00t.model.backbone import BackboneOutput


@dataclass
class Tokens:
    """Context tokens (B, S, dim); mask (B, S) bool, True where a token may be attended to; None where all may."""

    values: Tensor
    mask: Tensor | None = None


@dataclass
class Context:
    """All VLM tokens, and the two kinds of them that alternate blocks attend to."""

    everything: Tokens
    text: Tokens
    image: Tokens

    @classmethod
    def of(cls, values: Tensor, backbone: BackboneOutput) -> Context:
        """Split VLM tokens (B, S, dim) by the backbone's masks; padding belongs to neither kind."""
        text = backbone.attention_mask & ~backbone.image_mask
        image = backbone.attention_mask & backbone.image_mask
        return cls(Tokens(values), pick(values, text), pick(values, image))


def pick(values: Tensor, chosen: Tensor) -> Tokens:
    """The chosen tokens of each row, in order; rows with fewer are filled up and masked.

    Attending to these equals attending to all under the mask, at the cost of the chosen ones only. Their number is
    read from the device once.
    """
    counts = chosen.sum(dim=1)
    fewest, most = torch.stack([counts.min(), counts.max()]).tolist()
    order = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    picked = values.gather(1, order.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
    return Tokens(picked, None if fewest == most else chosen.gather(1, order))
