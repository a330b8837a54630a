"""The VLM's tokens as the action head reads them: without padding, and the text and image tokens picked out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gr00t.model.backbone import BackboneOutput


@dataclass
class Tokens:
    """Context tokens (B, S, dim); mask (B, S) bool, True where a token may be attended to; None where all may."""

    values: Tensor
    mask: Tensor | None = None


@dataclass
class VlmTokens:
    """All tokens of the VLM, and which of them (B, S) are text and which are images; padding is neither."""

    tokens: Tokens
    text: Tensor
    image: Tensor

    @classmethod
    def of(cls, seen: BackboneOutput, *, padding_leaks: bool = False) -> VlmTokens:
        """The backbone's tokens with the padding taken out: those of each row in order from the left, rows with fewer
        filled up and masked. So neither padding nor a longer prompt beside it reaches a sample.

        `padding_leaks` leaves all where it is and masks nothing, as the original does.
        """
        text, image = seen.attention_mask & ~seen.image_mask, seen.attention_mask & seen.image_mask
        if padding_leaks:
            return cls(Tokens(seen.features), text, image)
        ((fewest, most),) = _fewest_and_most(seen.attention_mask)
        if fewest == seen.attention_mask.shape[1]:
            return cls(Tokens(seen.features), text, image)
        order = _chosen_first(seen.attention_mask, most)
        mask = None if fewest == most else seen.attention_mask.gather(1, order)
        return cls(Tokens(_rows(seen.features, order), mask), text.gather(1, order), image.gather(1, order))

    def with_values(self, values: Tensor) -> VlmTokens:
        """The same places with other values (B, S, dim)."""
        return replace(self, tokens=replace(self.tokens, values=values))


@dataclass
class Context:
    """What the DiT's cross-attention looks at: all VLM tokens, or the two kinds that alternate blocks attend to."""

    everything: Tokens
    text: Tokens
    image: Tokens

    @classmethod
    def of(cls, vlm: VlmTokens) -> Context:
        """Pick out the two kinds of tokens."""
        return cls(vlm.tokens, *pick(vlm.tokens.values, vlm.text, vlm.image))


def pick(values: Tensor, *choices: Tensor) -> list[Tokens]:
    """For each choice (B, S) bool the chosen tokens of each row, in order; rows with fewer are filled up and masked.

    Attending to these equals attending to all under the mask, at the cost of the chosen ones only. Their numbers are
    read from the device once.
    """
    picked = []
    for chosen, (fewest, most) in zip(choices, _fewest_and_most(*choices), strict=True):
        order = _chosen_first(chosen, most)
        picked.append(Tokens(_rows(values, order), None if fewest == most else chosen.gather(1, order)))
    return picked


def _fewest_and_most(*choices: Tensor) -> list[list[int]]:
    """Of each choice (B, S) the smallest and the largest number of chosen tokens in a row; waits for the device."""
    counts = [chosen.sum(dim=1) for chosen in choices]
    return torch.stack([torch.stack([count.min(), count.max()]) for count in counts]).tolist()


def _chosen_first(chosen: Tensor, most: int) -> Tensor:
    """Places (B, most) of the chosen tokens of each row in order, then of others."""
    return chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]


def _rows(values: Tensor, order: Tensor) -> Tensor:
    """The tokens (B, most, dim) at these places."""
    return values.gather(1, order.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
