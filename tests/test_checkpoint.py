"""Checkpoints: what is written comes back bit for bit, and what is wrong with a folder is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from benchmarks import checkpoints
from gr00t.errors import ToolkitError
from gr00t.model.config import Gr00tN1d7Config, released_config
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from gr00t.model.weight_files import LM_HEAD, MAX_SHARD_BYTES, plan_shards, release_tensors


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "copy"))


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_saving_and_loading_keeps_every_bit(tiny_base: Path, tmp_path: Path) -> None:
    model = Gr00tN1d7.from_pretrained(tiny_base)
    model.save_pretrained(tmp_path / "again", max_shard_size=3_000_000)
    assert len(list((tmp_path / "again").glob("model-*.safetensors"))) > 1
    again = Gr00tN1d7.from_pretrained(tmp_path / "again")
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())
    assert again.config.to_dict() == {**model.config.to_dict(), "architectures": ["Gr00tN1d7"], "dtype": "float32"}


def test_weights_may_be_read_by_whom_the_umask_lets(tiny_base: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in tiny_base.iterdir() if path.is_file()}
    assert len(set(modes.values())) == 1, modes


def test_config_json_holds_every_key_and_keeps_unknown_ones(copy: Path, tmp_path: Path) -> None:
    change_config(copy, a_key_of_a_later_version=[1, 2])
    Gr00tN1d7.from_pretrained(copy).save_pretrained(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["a_key_of_a_later_version"] == [1, 2]
    assert set(Gr00tN1d7Config().to_dict()) <= set(written)
    assert "vl_self_attention_cfg" in written and written["model_type"] == "Gr00tN1d7"


def test_transformers_auto_classes_know_the_model(tiny_base: Path) -> None:
    assert isinstance(AutoConfig.from_pretrained(tiny_base), Gr00tN1d7Config)
    assert isinstance(AutoModel.from_pretrained(tiny_base), Gr00tN1d7)


def test_a_file_without_the_copy_of_lm_head_is_read_too(copy: Path) -> None:
    shard = next(copy.glob("model-*.safetensors"))
    tensors = load_file(shard)
    assert torch.equal(tensors.pop(LM_HEAD), tensors["backbone.model.model.language_model.embed_tokens.weight"])
    shard.unlink()
    (copy / "model.safetensors.index.json").unlink()
    save_file(tensors, copy / "model.safetensors")
    Gr00tN1d7.from_pretrained(copy)


def test_replacing_the_file_of_a_live_model_does_not_change_it(copy: Path) -> None:
    model = Gr00tN1d7.from_pretrained(copy)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    shard = next(copy.glob("model-*.safetensors"))
    with shard.open("r+b") as file:
        file.seek(200_000)
        file.write(b"\x7f" * (shard.stat().st_size - 200_000))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_the_release_in_bf16_is_two_shards_of_4_99_and_1_92_gb() -> None:
    with torch.device("meta"):
        model = Gr00tN1d7(released_config())
    sizes = {n: t.numel() * 2 for n, t in release_tensors(model.state_dict()).items()}
    shards = [sum(sizes[n] for n in names) / 1e9 for names in plan_shards(sizes, MAX_SHARD_BYTES)]
    assert [round(s, 2) for s in shards] == [4.99, 1.92]


def test_the_script_for_the_full_size_runs_on_the_tiny_one(tiny_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    assert checkpoints.reload(base)["tensors equal"] and checkpoints.rewrite(base)["files equal"]
    assert checkpoints.act(base)["chunk"][0] == 1 and not checkpoints.shards(base)["as released"]


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("gr00t_n1_5", "N1.5"),
        ("Gr00tN1d6", "N1.6"),
        ("qwen3_vl", "plain Qwen3-VL"),
        ("bert", 'model_type "bert"'),
    ],
)
def test_another_model_is_refused_saying_what_it_is(copy: Path, model_type: str, message: str) -> None:
    change_config(copy, model_type=model_type)
    with pytest.raises(ToolkitError, match=message):
        Gr00tN1d7.from_pretrained(copy)


def edit_tensors(folder: Path, change: object) -> None:
    shard = next(folder.glob("model-*.safetensors"))
    tensors = {n: t.clone() for n, t in load_file(shard).items()}
    change(tensors)  # type: ignore[operator]
    shard.unlink()
    save_file(tensors, shard)


def test_a_missing_tensor_is_named(copy: Path) -> None:
    edit_tensors(copy, lambda t: t.pop("action_head.vlln.weight"))
    with pytest.raises(ToolkitError, match=r"lacks 1 tensors[\s\S]*action_head\.vlln\.weight"):
        Gr00tN1d7.from_pretrained(copy)


def test_an_unexpected_tensor_is_named(copy: Path) -> None:
    edit_tensors(copy, lambda t: t.update({"action_head.other": torch.ones(1)}))
    with pytest.raises(ToolkitError, match=r"action_head\.other"):
        Gr00tN1d7.from_pretrained(copy)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(copy: Path) -> None:
    edit_tensors(copy, lambda t: t.update({"action_head.vlln.weight": torch.ones(3)}))
    with pytest.raises(ToolkitError, match=r"action_head\.vlln\.weight.*\[3\].*\[64\]"):
        Gr00tN1d7.from_pretrained(copy)


def test_a_shard_cut_short_is_named(copy: Path) -> None:
    shard = next(copy.glob("model-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(ToolkitError, match=r"model-00001.*damaged"):
        Gr00tN1d7.from_pretrained(copy)


def test_a_missing_shard_is_named(copy: Path) -> None:
    next(copy.glob("model-*.safetensors")).unlink()
    with pytest.raises(ToolkitError, match="lacks the shards"):
        Gr00tN1d7.from_pretrained(copy)


def test_no_folder_no_config_and_no_weights_are_told_apart(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(ToolkitError, match="No checkpoint folder"):
        Gr00tN1d7.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ToolkitError, match=r"no config\.json"):
        Gr00tN1d7.from_pretrained(copy / "experiment_cfg")
    for path in copy.glob("model*"):
        path.unlink()
    with pytest.raises(ToolkitError, match="no weights"):
        Gr00tN1d7.from_pretrained(copy)


def test_sizes_that_do_not_fit_together_are_refused(copy: Path) -> None:
    change_config(copy, input_embedding_dim=96)
    with pytest.raises(ToolkitError, match="input_embedding_dim"):
        Gr00tN1d7.from_pretrained(copy)


@pytest.mark.parametrize("dtype", ["int8", "bloat16", torch.int64])
def test_a_dtype_that_holds_no_weights_is_refused(dtype: object, tiny_base: Path) -> None:
    with pytest.raises(ToolkitError, match="is no dtype for weights"):
        Gr00tN1d7.from_pretrained(tiny_base, dtype=dtype)


def test_an_unknown_key_of_the_dit_gets_the_nearest_name(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    change_config(copy, diffusion_model_cfg={**config["diffusion_model_cfg"], "num_layer": 4})
    with pytest.raises(ToolkitError, match='Did you mean "num_layers"'):
        Gr00tN1d7.from_pretrained(copy)


def test_an_unknown_backbone_says_where_it_was_looked_for(copy: Path) -> None:
    change_config(copy, model_name="nobody/knows")
    shutil.rmtree(copy / "processor")
    with pytest.raises(ToolkitError, match=r"nobody/knows[\s\S]*config\.json"):
        Gr00tN1d7.from_pretrained(copy)
