"""LeRobot's checkpoints of GR00T N1.7, in the form its 0.6 writes them: weights, architecture, processor, tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from golden_files import golden_dir
from safetensors.torch import load_file, save_file

from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.errors import ToolkitError
from gr00t.model.checkpoint_folder import merged_config
from gr00t.model.gr00t_n1 import GR00TPolicy
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from gr00t.model.weight_files import EMBEDDINGS, LM_HEAD

TAG = "new_embodiment"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The recorded checkpoint as this project writes it: with every key, of which LeRobot's defaults differ."""
    recorded = golden_dir() / "tiny_h40"
    Gr00tN1d7.from_pretrained(recorded).save_pretrained(tmp_path / "base")
    Gr00tN1d7Processor.from_pretrained(recorded).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def policy(base: Path, tmp_path: Path) -> Path:
    """pretrained_model/ as LeRobot saves it: one prefixed file, of the tied pair only lm_head, two pipelines."""
    folder = tmp_path / "pretrained_model"
    folder.mkdir()
    config = {"type": "groot", "base_model_path": str(base), "embodiment_tag": TAG, "num_inference_timesteps": 2}
    (folder / "config.json").write_text(json.dumps({**config, "tune_vlln": False, "rtc_ramp_rate": None}))
    tensors = load_file(next(base.glob("model-*.safetensors")))
    assert torch.equal(tensors.pop(EMBEDDINGS), tensors[LM_HEAD])
    save_file({f"_groot_model.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    kwargs = json.loads((base / "processor_config.json").read_text())["processor_kwargs"]
    statistics = json.loads((base / "statistics.json").read_text())[TAG]
    statistics["state"][next(iter(statistics["state"]))]["min"][0] = -7.5
    grouped = {"raw_stats": statistics, "modality_config": kwargs["modality_configs"][TAG]}
    write_pipelines(folder, {"embodiment_tag": TAG, "formalize_language": False, **grouped})
    return folder


def write_pipelines(folder: Path, pack: dict) -> None:
    image = {"image_crop_size": [230, 230], "image_target_size": [256, 256], "shortest_image_edge": None}
    before = [
        {"registry_name": "groot_n1_7_pack_inputs_v1", "config": pack},
        {"registry_name": "groot_n1_7_vlm_encode_v1", "config": {**image, "crop_fraction": None}},
    ]
    after = [{"registry_name": "groot_n1_7_action_decode_v1", "config": {"use_percentiles": True}}]
    for name, steps in (("policy_preprocessor", before), ("policy_postprocessor", after)):
        (folder / f"{name}.json").write_text(json.dumps({"name": name, "steps": steps}))


def test_weights_and_architecture_are_those_of_the_base(policy: Path, base: Path) -> None:
    model, original = Gr00tN1d7.from_pretrained(policy), Gr00tN1d7.from_pretrained(base)
    assert model.config.num_inference_timesteps == 2 and model.config.tune_vlln is False
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_keys_that_the_base_leaves_out_are_lerobots() -> None:
    merged = merged_config({"hidden_size": 64}, {"tune_llm": True, "num_inference_timesteps": None})
    assert merged["select_layer"] == 16 and merged["diffusion_model_cfg"]["num_layers"] == 32
    assert merged["vl_self_attention_cfg"]["num_layers"] == 4 and merged["tune_llm"] is True
    assert "num_inference_timesteps" not in merged


def test_the_processor_is_the_bases_with_the_policys_own_settings(policy: Path, base: Path) -> None:
    processor, original = Gr00tN1d7Processor.from_pretrained(policy), Gr00tN1d7Processor.from_pretrained(base)
    config = processor.config
    assert (config.formalize_language, config.use_percentiles, config.image_crop_size) == (False, True, [230, 230])
    assert config.modality_configs == original.config.modality_configs
    own, old = dict(processor.files.statistics), dict(original.files.statistics)
    assert own.pop(TAG) != old.pop(TAG) and own == old
    assert processor.vlm.folder == original.vlm.folder


def test_saved_again_it_stands_alone_in_the_release_layout(policy: Path, tmp_path: Path) -> None:
    Gr00tN1d7.from_pretrained(policy).save_pretrained(tmp_path / "out")
    Gr00tN1d7Processor.from_pretrained(policy).save_pretrained(tmp_path / "out")
    shutil.rmtree(policy)
    assert GR00TPolicy.from_pretrained(tmp_path / "out", embodiment_tag=TAG).denoising_steps == 2


def test_flat_statistics_leave_the_weights_usable_but_not_the_tag(policy: Path) -> None:
    write_pipelines(policy, {"embodiment_tag": TAG, "raw_stats": None, "modality_config": None})
    processor = Gr00tN1d7Processor.from_pretrained(policy)
    assert TAG not in processor.files.statistics and TAG not in processor.config.modality_configs
    with pytest.raises(ToolkitError, match=TAG):
        GR00TPolicy.from_pretrained(policy, embodiment_tag=TAG)


def test_a_base_that_is_not_available_is_named_with_the_way_out(policy: Path, tmp_path: Path) -> None:
    config = json.loads((policy / "config.json").read_text())
    for base, reason in (("nvidia/not-cached", "local cache"), (str(tmp_path / "gone"), "No checkpoint folder")):
        (policy / "config.json").write_text(json.dumps({**config, "base_model_path": base}))
        with pytest.raises(
            ToolkitError, match=rf"leaves its architecture to its base[\s\S]*{reason}[\s\S]*base_model_path"
        ):
            Gr00tN1d7.from_pretrained(policy)
    (policy / "config.json").write_text(json.dumps({**config, "base_model_path": str(policy)}))
    with pytest.raises(ToolkitError, match="no GR00T N1.7 in the release layout".replace(".", r"\.")):
        Gr00tN1d7.from_pretrained(policy)
