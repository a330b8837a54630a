"""What is declared: dataclasses are frozen, packages offer what they list, defaults are the original's."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from test_training import ROOT

import gr00t.data
import gr00t.model
from gr00t.data.processor_files import ProcessorConfig
from gr00t.model.config import Gr00tN1d7Config, TransformerConfig
from gr00t.model.cpu_kernels import Dropout
from gr00t.model.dit import TransformerBlock
from gr00t.model.gr00t_n1d7 import Gr00tN1d7

ROOMS = ("gr00t", "toolkit", "finetune", "data_prep", "simulation")
CHANGED_WHILE_IN_USE = {
    "AttemptToken",
    "Batch",  # of SLURM jobs
    "Best",
    "ConversionReport",
    "GroupCount",
    "Overrides",
    "Partition",
    "ProbePredictor",  # keeps features
    "Proposal",
    "Recordings",
    "Request",
    "Task",
    "TrainingLoop",
}
OF_TENSORS = {"ActionLoss", "BackboneOutput", "KeysValues", "Step", "Tokens", "VlmTokens"}
READ_BY_HYDRA = {"ModalityConfig"}  # and all whose name ends with Config: OmegaConf makes them


def dataclasses_not_frozen(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            for decorator in node.decorator_list:
                text = ast.unparse(decorator)
                if text.startswith("dataclass") and "frozen=True" not in text:
                    yield node.name


def test_dataclasses_are_frozen() -> None:
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    found = {name: path for path in files for name in dataclasses_not_frozen(path)}
    allowed = CHANGED_WHILE_IN_USE | OF_TENSORS | READ_BY_HYDRA
    loose = {name: str(path) for name, path in found.items() if name not in allowed and not name.endswith("Config")}
    assert not loose, f"{loose}: say frozen=True, or why not here"
    assert allowed - READ_BY_HYDRA <= set(found)


@pytest.mark.parametrize("package", [gr00t.data, gr00t.model])
def test_what_a_package_offers_is_there_and_nothing_else(package: ModuleType) -> None:
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'Gr00t'"):
        package.Gr00t  # noqa: B018


def test_a_processor_file_of_few_keys_means_what_it_means_to_the_original() -> None:
    """Source: the original's Gr00tN1d7Processor; what its files leave out is off, or of the size of the release."""
    found = ProcessorConfig.from_json({"modality_configs": {}, "later": 1}).to_json()
    assert found == {
        "modality_configs": {},
        "image_crop_size": None,
        "image_target_size": None,
        "use_albumentations": True,
        "random_rotation_angle": None,
        "color_jitter_params": None,
        "shortest_image_edge": None,
        "crop_fraction": None,
        "letter_box_transform": False,
        "model_name": "nvidia/Cosmos-Reason2-2B",
        "model_type": "qwen",
        "formalize_language": True,
        "max_state_dim": 132,
        "max_action_dim": 132,
        "max_action_horizon": 40,
        "use_percentiles": False,
        "use_mean_std": False,
        "clip_outliers": True,
        "apply_sincos_state_encoding": False,
        "use_relative_action": False,
        "exclude_state": False,
        "state_dropout_prob": 0.0,
        "later": 1,
    }
    assert (ProcessorConfig({}).shortest_image_edge, ProcessorConfig({}).crop_fraction) == (256, 0.95)
    assert ProcessorConfig({}).apply_sincos_state_encoding and ProcessorConfig({}).use_relative_action


def test_a_model_file_of_few_keys_means_what_it_means_to_the_original() -> None:
    """Source: the class defaults of the original's Gr00tN1d7Config."""
    found = Gr00tN1d7Config()
    sizes = {
        "backbone_embedding_dim": 2048,
        "select_layer": 12,
        "tune_top_llm_layers": 0,
        "max_state_dim": 132,
        "max_action_dim": 132,
        "action_horizon": 40,
        "state_history_length": 1,
        "hidden_size": 1024,
        "input_embedding_dim": 1536,
        "max_num_embodiments": 32,
        "max_seq_len": 1024,
        "attend_text_every_n_blocks": 2,
        "num_inference_timesteps": 4,
        "num_timestep_buckets": 1000,
        "noise_beta_alpha": 1.5,
        "noise_beta_beta": 1.0,
        "noise_s": 0.999,
        "attn_dropout": 0.2,
        "state_dropout_prob": 0.8,
    }
    assert {name: getattr(found, name) for name in sizes} == sizes
    on = ("add_pos_embed", "use_vlln", "use_alternate_vl_dit", "tune_projector", "tune_diffusion_model", "tune_vlln")
    off = ("tune_llm", "tune_visual", "apply_sincos_state_encoding", "use_relative_action", "exclude_state")
    assert all(getattr(found, name) is True for name in (*on, "use_percentiles", "formalize_language"))
    assert all(getattr(found, name) is False for name in (*off, "reproject_vision", "use_mean_std"))
    assert (found.dit.num_layers, found.dit.width, found.dit.output_dim, found.dit.dropout) == (16, 1536, 1024, 0.2)
    assert found.vl_self_attention is None
    bare = TransformerConfig.parse({"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}, "test")
    assert dataclasses.asdict(bare) == {
        "num_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "output_dim": 26,
        "dropout": 0.1,
        "final_dropout": True,
        "positional_embeddings": "sinusoidal",
        "max_num_positional_embeddings": 512,
        "interleave_self_attention": False,
        "norm_type": "ada_norm",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "norm_eps": 1e-5,
    }


@pytest.mark.parametrize("final", [True, False])
def test_dropout_lies_where_the_original_has_it(final: bool) -> None:
    sizes = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "dropout": 0.3}
    block = TransformerBlock(TransformerConfig(**sizes, final_dropout=final), context_dim=None, adaptive=False)
    places = {name: module.p for name, module in block.named_modules() if isinstance(module, Dropout)}
    last = {"final_dropout": 0.3, "ff.net.3": 0.3} if final else {}
    assert places == {"attn1.to_out.1": 0.3, "ff.net.1": 0.3, **last}


def test_the_model_may_use_fused_attention() -> None:
    assert Gr00tN1d7._supports_sdpa and Gr00tN1d7._supports_flash_attn  # asked by transformers
