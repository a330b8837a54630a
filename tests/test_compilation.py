"""Compiled parts compute the same, under the same names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gr00t.errors import ToolkitError
from gr00t.model.action_head import ActionHead
from gr00t.model.backbone import BackboneOutput
from gr00t.model.config import released_config
from gr00t.model.cpu_kernels import flash_attention
from gr00t.model.device import compile_for_acting, compile_for_training, compiles, missing_for_compilation

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_compiler = pytest.mark.skipif(missing_for_compilation(CPU) is not None, reason="no C++ compiler here")


@pytest.fixture(autouse=True)
def forget_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def small_head(blocks: int) -> ActionHead:
    """Cross- and self-attention in turn, without dropout (a compiled graph draws other random numbers)."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "dropout": 0.0}
    return ActionHead(
        released_config(
            diffusion_model_cfg={**sizes, "num_layers": blocks, "output_dim": 8, "interleave_self_attention": True},
            vl_self_attention_cfg=None,
            backbone_embedding_dim=16,
            input_embedding_dim=16,
            hidden_size=8,
            action_horizon=4,
            max_state_dim=3,
            max_action_dim=3,
            max_num_embodiments=1,
            state_dropout_prob=0.0,
        )
    )


def inputs() -> tuple[BackboneOutput, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    image = torch.tensor([[False] * 3 + [True] * 4] * 2)
    batch = {
        "state": random(2, 1, 3),
        "action": random(2, 4, 3),
        "action_mask": torch.ones(2, 4, 3),
        "embodiment_id": torch.tensor([0, 0]),
        "noise": random(2, 4, 3),
        "time": torch.tensor([0.2, 0.7]),
    }
    return BackboneOutput(random(2, 7, 16), torch.ones_like(image), image), batch


def step(head: ActionHead) -> tuple[torch.Tensor, list[torch.Tensor]]:
    loss = head(*inputs()).loss
    return loss, list(torch.autograd.grad(loss, list(head.parameters())))


@pytest.mark.long
@needs_compiler
@pytest.mark.slow
def test_a_compiled_head_learns_the_same_and_keeps_its_names() -> None:
    """Slow: the C++ compiler takes seconds for each graph, forward and backward; so it is one block."""
    head = small_head(blocks=1)
    loss, gradients = step(head)
    names = list(head.state_dict())
    compile_for_training(head)
    compiled_loss, compiled_gradients = step(head)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert torch.allclose(compiled_loss, loss, rtol=1e-6)
    for found, expected in zip(compiled_gradients, gradients, strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert list(head.state_dict()) == names


def test_blocks_are_traced_one_by_one_also_where_they_are_computed_again() -> None:
    """By a backend that compiles nothing: what is traced is the same, and needs no compiler."""
    head = small_head(blocks=2)
    loss, gradients = step(head)
    for block in head.model.transformer_blocks:
        block.recompute = True
        block.compile(backend="aot_eager")
    compiled_loss, compiled_gradients = step(head)
    assert torch.allclose(compiled_loss, loss, rtol=1e-6)
    assert all(map(torch.allclose, compiled_gradients, gradients))


def test_compiling_is_left_to_machines_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    assert not compiles(None, CPU) and not compiles(None, CUDA) and not compiles(False, CPU)
    with pytest.raises(ToolkitError, match=r"train\.compile=true, but this machine lacks a compiler"):
        compiles(True, CPU)
    with pytest.raises(ToolkitError, match=r"lacks a compiler.*Leave compile_head\(\) out"):
        compile_for_acting(small_head(blocks=1))


@needs_compiler
def test_a_cpu_compiles_only_when_asked() -> None:
    assert compiles(True, CPU) and not compiles(None, CPU)


def test_flash_attention_is_no_choice_on_a_cpu_or_in_fp32() -> None:
    assert flash_attention(CPU, torch.bfloat16) is None
    assert flash_attention(CUDA, torch.float32) is None
