"""Adapters on the language model: nothing changes at first, they alone are trained there, and end up in its weights."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from config_calls import refusal
from golden_files import checkpoint_of, load, train_files
from safetensors.torch import load_file
from test_training import config, losses, trained

from finetune.recipe.train_config import LORA_TARGETS, LoraConfig
from finetune.training.optimizer import add_adapters, merge_adapters
from finetune.training.train import finetune
from gr00t.errors import ToolkitError
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from gr00t.model.weight_files import read_tensors

LLM = "backbone.model.model.language_model."
RANK, ALPHA = 4, 8
LORA = (f"train.lora.rank={RANK}", f"train.lora.alpha={ALPHA}", "train.lora.dropout=0.1")
FROZEN = dict(projector=False, diffusion_model=False, vlln=False)


@pytest.fixture(scope="module")
def runs(small_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Six steps without adapters, and with."""
    out = tmp_path_factory.mktemp("lora")
    finetune(config(out / "plain", small_data, tiny_base))
    finetune(config(out / "lora", small_data, tiny_base, *LORA))
    return {"plain": out / "plain", "lora": out / "lora"}


def test_new_adapters_change_nothing(runs: dict[str, Path]) -> None:
    assert losses(runs["lora"])[1] == losses(runs["plain"])[1]
    assert losses(runs["lora"])[6] != losses(runs["plain"])[6]


def test_of_the_language_model_only_adapters_are_trained_and_kept(runs: dict[str, Path]) -> None:
    kept = trained(runs["lora"])
    own = {name for name in kept if name.startswith("backbone.")}
    assert set(kept) - own == set(trained(runs["plain"]))
    layers, halves = range(3), ("lora_A", "lora_B")
    targets = ("q_proj", "k_proj", "v_proj", "o_proj")
    assert own == {f"{LLM}layers.{i}.self_attn.{t}.{h}.default.weight" for i in layers for t in targets for h in halves}
    assert all(kept[name].dtype == torch.float32 for name in own)
    assert any(kept[name].any() for name in own if "lora_B" in name)


def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(
    runs: dict[str, Path], small_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs["lora"] / "run" / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
    finetune(config(tmp_path, small_data, tiny_base, *LORA))
    assert losses(tmp_path) == {step: loss for step, loss in losses(runs["lora"]).items() if step > 3}
    there, here = trained(runs["lora"]), trained(tmp_path)
    assert all(torch.equal(there[name], here[name]) for name in there | here)
    released = [load_file(next((out / "done").glob("*.safetensors"))) for out in (runs["lora"], tmp_path)]
    assert all(torch.equal(released[0][name], released[1][name]) for name in released[0] | released[1])


def test_the_finished_checkpoint_has_the_originals_tensors_with_the_adapters_in_them(
    runs: dict[str, Path], tiny_base: Path
) -> None:
    base, kept = dict(read_tensors(tiny_base)), trained(runs["lora"])
    done = dict(read_tensors(runs["lora"] / "done"))
    assert done.keys() == base.keys()
    for name in (n for n in base if n.startswith("backbone.")):
        wanted, adapter = base[name], name.removesuffix(".weight") + ".lora_{}.default.weight"
        if adapter.format("A") in kept:
            wanted = wanted + ALPHA / RANK * kept[adapter.format("B")] @ kept[adapter.format("A")]
        assert torch.equal(done[name], wanted.to(torch.bfloat16)), name


def adapted(base: Path, lora: LoraConfig, seed: int = 0, **precision: torch.dtype) -> Gr00tN1d7:
    model = Gr00tN1d7.from_pretrained(base, tune=FROZEN, **precision)
    add_adapters(model, lora, seed)
    return model


def test_merged_weights_compute_what_the_adapters_did() -> None:
    path = train_files()[0]
    model = adapted(checkpoint_of(path), LoraConfig(rank=RANK, targets=list(LORA_TARGETS)))
    inputs = {n.removeprefix("in::"): torch.from_numpy(a) for n, a in load(path).items() if n.startswith("in::")}
    inputs["images"] = torch.from_numpy(load(path)["img"])
    with torch.no_grad():
        plain = model.eval().features(inputs).features
        for _, half in model.trained_parameters():
            half += 0.05 * torch.randn(half.shape, generator=torch.Generator().manual_seed(1))
        beside = model.features(inputs).features
        merge_adapters(model)
        merged = model.features(inputs).features
    assert torch.allclose(merged, beside, rtol=1e-4, atol=1e-5)
    assert (beside - plain).norm() > 1e-2 * plain.norm()


def test_each_adapter_has_rank_times_its_two_widths_values(tiny_base: Path) -> None:
    model = adapted(tiny_base, LoraConfig(rank=RANK, targets=list(LORA_TARGETS)))
    widths = {"q_proj": 128, "k_proj": 96, "v_proj": 96, "o_proj": 128}  # in + out; hidden 64, 4 and 2 heads of 16
    widths |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), 64 + 160)
    assert sum(p.numel() for _, p in model.trained_parameters()) == 3 * RANK * sum(widths.values())


def test_in_bf16_adapters_are_fp32_beside_frozen_bf16_weights(tiny_base: Path) -> None:
    model = adapted(tiny_base, LoraConfig(rank=RANK), dtype=torch.bfloat16, trained_dtype=torch.float32)
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {torch.float32}
    assert {p.dtype for n, p in model.named_parameters() if "lora_" not in n} == {torch.bfloat16}
    merge_adapters(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_bf16_run_of_adapters_alone_learns(small_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    none = [f"train.tune.{group}=false" for group in FROZEN]
    more = ["train.precision=bf16", "train.learning_rate=1e-2", "train.optimizer=adamw_8bit", *LORA, *none]
    finetune(config(tmp_path, small_data, tiny_base, *more))
    assert all(name.startswith(LLM) for name in trained(tmp_path))
    assert dict(read_tensors(tmp_path / "done")).keys() == dict(read_tensors(tiny_base)).keys()


def test_adapters_start_from_the_seed_alone(tiny_base: Path) -> None:
    torch.manual_seed(5)
    first = adapted(tiny_base, LoraConfig(rank=RANK), seed=1)
    torch.manual_seed(6)
    drawn = torch.get_rng_state()
    same, other = (dict(adapted(tiny_base, LoraConfig(rank=RANK), seed=s).trained_parameters()) for s in (1, 2))
    assert torch.equal(torch.get_rng_state(), drawn)
    for name, half in first.trained_parameters():
        assert torch.equal(half, same[name])
        assert "lora_B" in name or not torch.equal(half, other[name])


def test_in_training_only_the_adapters_dropout_of_a_frozen_language_model_is_active(tiny_base: Path) -> None:
    model = adapted(tiny_base, LoraConfig(rank=RANK, dropout=0.1)).train()
    active = {name for name, m in model.backbone.named_modules() if isinstance(m, torch.nn.Dropout) and m.training}
    assert len(active) == 3 * 4 and all("lora_dropout" in name for name in active)
    assert not model.backbone.vlm.language_model.layers[0].training


REFUSALS = {
    "train.lora.targets=[q_prj]": ('no "q_prj"', 'Did you mean "q_proj"?'),
    "train.lora.targets=[]": ("one at least",),
    "train.lora.targets=[q_proj,q_proj]": ("each product once",),
    "train.lora.rank=0": ("train.lora.rank=0", "at least 1"),
    "train.lora.alpha=8": ("without a rank there are no adapters", "train.lora.rank=16"),
    "train.lora.rank=4 train.tune.llm=true": ("train.tune.llm=true trains it itself",),
    "train.lora.rank=4 train.tune.top_llm_layers=1": ("train.tune.top_llm_layers=1 trains it itself",),
    "train.lora.rank=4 train.features=cached": ("train.features=live",),
}


@pytest.mark.parametrize("arguments", REFUSALS)
def test_refusal_names_the_reason_and_the_remedy(arguments: str) -> None:
    message = refusal("finetune", *arguments.split())
    assert all(part in message for part in REFUSALS[arguments])


def test_a_missing_peft_is_named_with_the_command_that_installs_it(
    small_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ToolkitError, match=r"needs peft\. Install it: pip install '\.\[lora\]'"):
        config(tmp_path, small_data, tiny_base, *LORA)
