"""Folders that are no whole GR00T N1.7 checkpoint: each is refused, saying what it is and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gr00t.errors import ToolkitError
from gr00t.model.checkpoint_folder import resolve_folder
from gr00t.model.gr00t_n1 import GR00TPolicy
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from gr00t.model.weight_files import EMBEDDINGS, LM_HEAD

INDEX = "model.safetensors.index.json"


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "copy"))


def refused(folder: str | Path, message: str) -> None:
    with pytest.raises(ToolkitError, match=message):
        Gr00tN1d7.from_pretrained(folder)


def write_config(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "gr00t_n1", "architectures": ["GR00T_N1"]},
            r"GR00T N1 checkpoint .*Start from nvidia/GR00T-N1\.7",
        ),
        ({"model_type": "gr00t_n1_5", "architectures": ["GR00T_N1_5"]}, r"GR00T N1\.5 checkpoint"),
        ({"architectures": ["GR00T_N1_5"], "backbone_cfg": {"eagle_path": "x"}}, r"GR00T N1\.5 checkpoint"),
        ({"backbone_cfg": {"eagle_path": "x"}}, r"N1 or N1\.5 checkpoint \(Eagle"),
        ({"model_type": "Gr00tN1d6", "architectures": ["Gr00tN1d6"]}, r"GR00T N1\.6 checkpoint \(Gr00tN1d6\)"),
        ({"model_type": "Gr00tN1d8"}, r"GR00T N1\.8 checkpoint"),
        (
            {"model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"]},
            "plain Qwen3-VL.*create_base",
        ),
        ({"model_type": "qwen2_5_vl"}, "vision-language model"),
        ({"model_type": "bert"}, 'model_type "bert"'),
        ({}, 'model_type "None"'),
        ({"type": "act"}, 'LeRobot checkpoint of the policy "act"'),
        ({"type": "gr00t_n1d6"}, r'"gr00t_n1d6" \(GR00T N1\.6\)'),
        ({"type": "groot", "base_model_path": "nvidia/GR00T-N1.5-3B"}, r"LeRobot checkpoint of GR00T N1\.5"),
        ({"type": "groot", "tokenizer_assets_repo": "a/b"}, r"LeRobot checkpoint of GR00T N1\.5"),
        ({"type": "groot"}, "names no base_model_path"),
        ({"type": "groot", "base_model_path": "/nowhere/base"}, r"its base \"/nowhere/base\"[\s\S]*finetune.prefetch"),
        ({"model_type": "Gr00tN1d7", "use_tactile": True}, "use_tactile on, which a later GR00T brought"),
    ],
)
def test_another_model_is_named(config: dict, message: str, tmp_path: Path) -> None:
    folder = write_config(tmp_path / "other", **config)
    refused(folder, message)
    with pytest.raises(ToolkitError, match=message):
        GR00TPolicy.from_pretrained(folder)


def test_a_folder_of_suites_lists_them(tiny_base: Path, tmp_path: Path) -> None:
    for suite in ("libero_spatial", "libero_goal"):
        shutil.copytree(tiny_base, tmp_path / "suites" / suite)
    refused(tmp_path / "suites", r"several checkpoints[\s\S]*suites/libero_goal\n.*suites/libero_spatial")
    Gr00tN1d7.from_pretrained(tmp_path / "suites" / "libero_goal")
    refused(tmp_path / "suites" / "libero_gaol", 'Did you mean ".*libero_goal"')


def cached(cache: Path, repository: str) -> Path:
    """The snapshot folder of a repository in a hub cache, as the client leaves it."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    return root / "snapshots" / ("0" * 40)


def test_a_hub_id_with_a_folder_is_found_in_the_cache_offline(tiny_base: Path, tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "cache", "nvidia/GR00T-N1.7-SUITES")
    shutil.copytree(tiny_base, snapshot / "spatial")
    options = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    assert resolve_folder("nvidia/GR00T-N1.7-SUITES/spatial", **options) == snapshot / "spatial"
    Gr00tN1d7.from_pretrained("nvidia/GR00T-N1.7-SUITES/spatial", **options)
    with pytest.raises(ToolkitError, match=r"several checkpoints[\s\S]*nvidia/GR00T-N1\.7-SUITES/spatial"):
        resolve_folder("nvidia/GR00T-N1.7-SUITES", **options)
    with pytest.raises(ToolkitError, match=r'no folder "spatail".*Did you mean "spatial"'):
        resolve_folder("nvidia/GR00T-N1.7-SUITES/spatail", **options)
    with pytest.raises(ToolkitError, match=r"nor is it whole in the local cache.*finetune\.prefetch base=nvidia/other"):
        resolve_folder("nvidia/other", **options)


def test_a_mistyped_folder_is_refused_with_the_nearest_one(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_base, tmp_path / "checkpoints" / "color_object")
    monkeypatch.chdir(tmp_path)
    options = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    for typed in ("checkpoints/colr_object", "./checkpoints/colour_object"):
        with pytest.raises(ToolkitError, match=r'No checkpoint folder.*Did you mean "checkpoints/color_object"'):
            resolve_folder(typed, **options)
    with pytest.raises(ToolkitError, match=r'neither a local folder.*Did you mean "checkpoints/color_object"'):
        resolve_folder("chekpoints/color_object", **options)  # could be owner/name


def test_half_a_download_is_called_that(copy: Path) -> None:
    partial = copy / ".cache" / "huggingface" / "download" / "x.incomplete"
    partial.parent.mkdir(parents=True)
    partial.touch()
    shard = next(copy.glob("model-*.safetensors"))
    shard.unlink()
    refused(copy, rf"lacks the shards \['{shard.name}'\].*interrupted here.*it continues")
    (copy / INDEX).unlink()
    refused(copy, "no weights in it.*interrupted here")


def test_a_shard_without_the_index_is_not_guessed_at(copy: Path) -> None:
    (copy / INDEX).unlink()
    refused(copy, rf"but no {INDEX}, which says which shards there are")


def test_a_git_lfs_pointer_is_called_that(copy: Path) -> None:
    shard = next(copy.glob("model-*.safetensors"))
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4990000000\n")
    refused(copy, "git-lfs pointer.*git lfs pull")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model-00001-of-00002.bin"])
def test_pickled_weights_are_never_read(copy: Path, name: str) -> None:
    for path in copy.glob("model*"):
        path.unlink()
    (copy / name).write_bytes(b"cos\nsystem\n")
    refused(copy, rf"pickled weights only \({name}\).*safe_serialization=True")


def test_adapters_alone_are_refused(copy: Path, tmp_path: Path) -> None:
    for path in copy.glob("model*"):
        path.unlink()
    (copy / "adapter_model.safetensors").touch()
    refused(copy, r"adapter \(PEFT\) only.*merge_and_unload")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    refused(tmp_path / "adapter", r"is an adapter \(PEFT\)")


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", "x.bin"]
)
def test_an_index_that_leaves_the_folder_is_refused(copy: Path, name: str) -> None:
    index = json.loads((copy / INDEX).read_text())
    index["weight_map"][LM_HEAD] = name
    (copy / INDEX).write_text(json.dumps(index))
    refused(copy, "only safetensors files of the folder itself")


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": {"a": 1}}, {"weight_map": []}])
def test_a_damaged_index_is_named(copy: Path, index: dict) -> None:
    (copy / INDEX).write_text(json.dumps(index))
    refused(copy, rf"{INDEX} is damaged")


def test_a_tensor_stored_twice_is_refused(copy: Path) -> None:
    index = json.loads((copy / INDEX).read_text())
    save_file({"action_head.vlln.weight": torch.ones(64)}, copy / "old.safetensors")
    index["weight_map"]["other"] = "old.safetensors"
    (copy / INDEX).write_text(json.dumps(index))
    refused(copy, r"action_head\.vlln\.weight. is stored twice")


def test_of_tied_weights_either_name_is_enough(copy: Path) -> None:
    expected = Gr00tN1d7.from_pretrained(copy).state_dict()
    shard = next(copy.glob("model-*.safetensors"))
    tensors = load_file(shard)
    tensors.pop(EMBEDDINGS)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, shard)
    assert torch.equal(Gr00tN1d7.from_pretrained(copy).state_dict()[EMBEDDINGS], expected[EMBEDDINGS])


def test_an_unknown_tag_gets_the_nearest_one(tiny_base: Path) -> None:
    with pytest.raises(ToolkitError, match=r'"libero_sin".*Did you mean "libero_sim"'):
        GR00TPolicy.from_pretrained(tiny_base, embodiment_tag="libero_sin")
