"""Weight files and their settings by hand: what is cut where, what tells two checkpoints apart, what fits together."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gr00t.data.layout import MetaFolder, dataset_fingerprint
from gr00t.data.meta_files import read_tasks
from gr00t.data.schema import ActionConfig, ActionFormat, ActionRepresentation, ActionType
from gr00t.errors import ToolkitError
from gr00t.model import checkpoint_folder as folders
from gr00t.model.architecture import QWEN3_VL_2B
from gr00t.model.checkpoint_folder import (
    INDEX_NAME,
    fingerprint,
    hub_parts,
    merged_config,
    processor_kwargs,
    resolve_folder,
    weight_files,
)
from gr00t.model.config import Gr00tN1d7Config, TransformerConfig, released_config
from gr00t.model.finished_checkpoint import foreign_files, verify_checkpoint, verify_manifest, write_manifest
from gr00t.model.gr00t_n1 import GR00TPolicy, _check_steps, _representation, _seeded, _short
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from gr00t.model.weight_files import (
    EMBEDDINGS,
    LM_HEAD,
    parse_dtype,
    plan_shards,
    read_tensors,
    release_tensors,
)
from toolkit import code_files

# shards


def test_shards_are_filled_to_the_last_byte_and_no_further() -> None:
    sizes = {"a": 4, "b": 6, "c": 1, "d": 25, "e": 9, "f": 2}
    assert plan_shards(sizes, 10) == [["a", "b"], ["c"], ["d"], ["e"], ["f"]]
    assert plan_shards(sizes, 11) == [["a", "b", "c"], ["d"], ["e", "f"]]


def test_the_tied_copy_follows_the_backbone_and_the_head_comes_last(tiny_base: Path) -> None:
    model = Gr00tN1d7.from_pretrained(tiny_base)
    names = list(release_tensors(model.state_dict()))
    assert names[-1].startswith("action_head.") and names[0].startswith("backbone.")
    place = names.index(LM_HEAD)
    assert all(name.startswith("backbone.") for name in names[:place])
    assert all(name.startswith("action_head.") for name in names[place + 1 :])


def test_a_checkpoint_with_either_name_of_the_tied_weights_is_whole(tiny_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (sharded,) = folder.glob("model-*.safetensors")
    whole = load_file(sharded)
    wanted = verify_checkpoint(folder).parameters
    (folder / INDEX_NAME).unlink()
    file = sharded.rename(folder / "model.safetensors")
    for gone in (LM_HEAD, EMBEDDINGS):
        save_file({name: tensor for name, tensor in whole.items() if name != gone}, file)
        assert verify_checkpoint(folder).parameters == wanted
    save_file({name: tensor for name, tensor in whole.items() if name not in (LM_HEAD, EMBEDDINGS)}, file)
    with pytest.raises(ToolkitError, match="embed_tokens"):
        verify_checkpoint(folder)
    save_file({**{n: t for n, t in whole.items() if n != EMBEDDINGS}, LM_HEAD: whole[LM_HEAD][1:].clone()}, file)
    with pytest.raises(ToolkitError, match="embed_tokens"):
        verify_checkpoint(folder)


def test_of_tied_weights_in_two_files_the_embeddings_are_read_once(tmp_path: Path) -> None:
    save_file({LM_HEAD: torch.ones(2, 2)}, tmp_path / "model-1.safetensors")
    save_file({EMBEDDINGS: torch.zeros(2, 2), "x": torch.ones(1)}, tmp_path / "model-2.safetensors")
    places = {LM_HEAD: "model-1.safetensors", EMBEDDINGS: "model-2.safetensors", "x": "model-2.safetensors"}
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": places}))
    save_file({"old": torch.ones(1)}, tmp_path / "model.safetensors")  # the index decides
    found = list(read_tensors(tmp_path))
    assert sorted(name for name, _ in found) == [EMBEDDINGS, "x"] and not dict(found)[EMBEDDINGS].any()
    assert [path.name for path in weight_files(tmp_path)] == ["model-1.safetensors", "model-2.safetensors"]


def test_a_fingerprint_looks_at_configuration_names_sizes_and_places_all_over(tmp_path: Path) -> None:
    size = 32 * 100_000
    content = bytearray(size)

    def of(name: str = "model-1.safetensors", config: str = "{}") -> str:
        folder = tmp_path / "checkpoint"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "config.json").write_text(config)
        (folder / name).write_bytes(content)
        (folder / INDEX_NAME).write_text(json.dumps({"weight_map": {"x": name}}))
        return fingerprint(folder)

    seen = [of(), of(name="model-2.safetensors"), of(config="{ }")]
    assert of() == seen[0]
    for place in (*range(0, size, 100_000), 65_535, size - 100_000 + 65_535):
        content[place] = 1
        seen.append(of())
        content[place] = 0
    content.append(0)
    seen.append(of())
    assert len(set(seen)) == len(seen)


def test_weights_that_are_trained_may_have_a_type_of_their_own(tiny_base: Path) -> None:
    tune = {"projector": True, "diffusion_model": False, "vlln": False, "visual": True}
    model = Gr00tN1d7.from_pretrained(tiny_base, dtype="bfloat16", trained_dtype=torch.float32, tune=tune)
    assert {p.dtype for _, p in model.trained_parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {n.split(".")[0] for n, _ in model.trained_parameters()} == {"backbone", "action_head"}
    assert not any(module.training for module in model.modules())


def test_without_a_choice_is_trained_what_config_json_says(tiny_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    path = base / "config.json"
    config = json.loads(path.read_text()) | {"tune_projector": False, "tune_vlln": False, "tune_top_llm_layers": 1}
    path.write_text(json.dumps(config))
    names = {n for n, _ in Gr00tN1d7.from_pretrained(base).trained_parameters()}
    parts = ("action_head.model.", "backbone.model.model.language_model.layers.2.")
    assert names and all(name.startswith(parts) for name in names) and len({n.split(".")[0] for n in names}) == 2


def test_a_type_is_given_by_itself_or_its_name_and_the_newer_keyword_wins(tiny_base: Path) -> None:
    assert parse_dtype(None) is None and parse_dtype("auto") is None
    assert parse_dtype("bfloat16") == parse_dtype(torch.bfloat16) == torch.bfloat16
    assert Gr00tN1d7.from_pretrained(tiny_base, torch_dtype="bfloat16").dtype == torch.bfloat16
    assert Gr00tN1d7.from_pretrained(tiny_base, torch_dtype="bfloat16", dtype="float32").dtype == torch.float32


def test_a_whole_checkpoint_is_summed_up_by_what_lies_there(tiny_base: Path) -> None:
    found = verify_checkpoint(tiny_base)
    files = sorted(tiny_base.glob("*.safetensors"))
    tensors = {name: tensor for path in files for name, tensor in load_file(path).items()}
    assert found.parameters == sum(t.numel() for n, t in tensors.items() if n != LM_HEAD)
    assert (found.weight_bytes, found.shards) == (sum(path.stat().st_size for path in files), len(files))


# where a checkpoint comes from


@pytest.mark.parametrize(
    "name, parts",
    [
        ("nvidia/GR00T", ("nvidia/GR00T", "")),
        ("nvidia/GR00T/", ("nvidia/GR00T", "")),
        ("nvidia/GR00T/libero/goal", ("nvidia/GR00T", "libero/goal")),
    ],
)
def test_a_hub_id_is_owner_name_and_folder(name: str, parts: tuple[str, str]) -> None:
    assert hub_parts(name, Path(name)) == parts


@pytest.mark.parametrize("name", ["alone", "./a/b", "~/a/b", "/a/b", "a//b", "a/../b", "a/./b", "here/b"])
def test_what_cannot_be_a_hub_id_is_a_missing_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ToolkitError, match="No checkpoint folder"):
        hub_parts(name, Path(name))


def test_weights_are_fetched_last_and_of_the_chosen_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, Any]] = []
    monkeypatch.setattr(folders, "_snapshot", lambda _, allow, ignore, __: (asked.append((allow, ignore)), tmp_path)[1])
    for folder in ("goal", "spatial"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}")
    small = (folders.SMALL_FILES, None)
    assert resolve_folder("owner/name/goal") == tmp_path / "goal"
    assert asked == [small, (["goal/*.safetensors"], ["goal/*/*.safetensors"])]
    asked.clear()
    assert resolve_folder("owner/name/goal", weights=False) == tmp_path / "goal" and asked == [small]
    asked.clear()
    with pytest.raises(ToolkitError, match="several checkpoints"):
        resolve_folder("owner/name")
    assert asked == [small]
    (tmp_path / "config.json").write_text("{}")
    asked.clear()
    resolve_folder("owner/name")
    assert asked == [small, (["*.safetensors"], ["*/*.safetensors"])]


def test_further_files_may_be_allowed_but_never_missing_or_changed_ones(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("{}")
    write_manifest(tmp_path)
    (tmp_path / "c.json").write_text("{}")
    verify_manifest(tmp_path, added=True)
    assert foreign_files(tmp_path) == ["c.json"]
    (tmp_path / "b.json").write_text("[]")  # of the same size
    with pytest.raises(ToolkitError, match=r"says:\n  b.json has changed\nCopy"):
        verify_manifest(tmp_path, added=True)
    (tmp_path / "b.json").unlink()
    with pytest.raises(ToolkitError, match=r"says:\n  b.json is missing\nCopy"):
        verify_manifest(tmp_path, added=True)


def test_without_a_manifest_files_that_no_checkpoint_has_are_foreign(tmp_path: Path) -> None:
    usual = ["config.json", "statistics.json", "model-1.safetensors", "model.safetensors.index.json"]
    for name in (
        *usual,
        "processor/vlm/x.txt",
        "experiment_cfg/a.json",
        "optimizer.pt",
        "wandb/model.safetensors",
        "x.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert foreign_files(tmp_path) == ["optimizer.pt", "wandb/model.safetensors", "x.py"]


# configurations

SIZES = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}


@pytest.mark.parametrize(
    "change, said",
    [
        ({"num_layers": 0}, "num_layers must be a positive integer"),
        ({"num_attention_heads": None}, "num_attention_heads must be a positive integer"),
        ({"attention_head_dim": 8.0}, "attention_head_dim must be a positive integer"),
        ({"activation_fn": "geglu"}, "activation_fn: only 'gelu-approximate'"),
        ({"attention_bias": False}, "attention_bias: only True"),
        ({"norm_type": "layer_norm"}, "norm_type: only 'ada_norm'"),
        ({"positional_embeddings": "rope"}, "positional_embeddings must be null"),
    ],
)
def test_a_transformer_that_is_not_implemented_is_refused(change: dict[str, Any], said: str) -> None:
    assert TransformerConfig.parse(SIZES, "cfg").width == 16
    with pytest.raises(ToolkitError, match=said):
        TransformerConfig.parse(SIZES | change, "cfg")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"input_embedding_dim": 1535}, "must equal input_embedding_dim, not 1536 and 1535"),
        ({"hidden_size": 1023}, "must equal hidden_size, not 1024 and 1023"),
        ({"backbone_embedding_dim": 1024}, "must equal backbone_embedding_dim, not 2048 and 1024"),
        ({"max_seq_len": 39}, "action_horizon 40 exceeds max_seq_len 39"),
    ],
)
def test_parts_of_other_widths_are_refused_before_anything_is_built(change: dict[str, Any], said: str) -> None:
    released_config(max_seq_len=40).check()
    released_config(max_seq_len=39, add_pos_embed=False).check()
    released_config(backbone_embedding_dim=1024, vl_self_attention_cfg=None).check()
    with pytest.raises(ToolkitError, match=said):
        released_config(**change).check()


def test_no_layers_over_the_tokens_are_no_transformer() -> None:
    for none in (None, {}, {"num_layers": 0}, {"num_attention_heads": 2}):
        assert Gr00tN1d7Config(vl_self_attention_cfg=none).vl_self_attention is None
    assert Gr00tN1d7Config(vl_self_attention_cfg=SIZES).vl_self_attention is not None


def test_a_missing_key_means_the_originals_default_and_the_release_sets_its_own() -> None:
    found, released = Gr00tN1d7Config(), released_config()
    assert (found.noise_beta_alpha, found.noise_beta_beta, found.noise_s) == (1.5, 1.0, 0.999)
    assert (found.num_inference_timesteps, found.num_timestep_buckets) == (4, 1000)
    assert (found.state_dropout_prob, released.state_dropout_prob) == (0.8, 0.2)
    assert (found.select_layer, released.select_layer) == (12, 16)
    assert (found.dit.num_layers, released.dit.num_layers) == (16, 32) and found.dit.dropout == 0.2
    assert found.vl_self_attention is None and released.vl_self_attention.num_layers == 4  # type: ignore[union-attr]
    trained = (found.tune_projector, found.tune_diffusion_model, found.tune_vlln, found.tune_llm, found.tune_visual)
    assert trained == (True, True, True, False, False) and found.use_relative_action is not released.use_relative_action


def test_lerobots_defaults_give_way_to_the_base_and_the_base_to_the_policy() -> None:
    base = {"select_layer": 3, "tune_llm": False, "rtc_ramp_rate": 5.0, "num_inference_timesteps": 8, "hidden_size": 7}
    policy = {"tune_llm": True, "rtc_ramp_rate": None, "num_inference_timesteps": 0, "hidden_size": 1, "type": "groot"}
    found = merged_config(base, policy)
    assert (found["select_layer"], found["state_dropout_prob"], found["hidden_size"]) == (3, 0.2, 7)
    assert (found["tune_llm"], found["rtc_ramp_rate"], found["num_inference_timesteps"]) == (True, 5.0, 0)
    assert "type" not in found


def test_a_lerobot_processor_keeps_the_base_and_takes_the_settings_that_are_there(tmp_path: Path) -> None:
    whole = {name: {"modality_keys": [], "delta_indices": []} for name in ("video", "state", "action", "language")}
    pack: dict[str, Any] = {"embodiment_tag": "mine", "raw_stats": {"state": 1}, "modality_config": whole}
    pack |= {"state_dropout_prob": 0.4, "clip_outliers": False, "unknown": 1}
    encode = {"crop_fraction": 0.9, "use_albumentations": False}
    decode = {"use_percentiles": False, "use_relative_action": True}
    (tmp_path / "config.json").write_text('{"embodiment_tag": "another"}')

    def written(pack: dict[str, Any]) -> Any:
        names = ("pack_inputs_v1", "vlm_encode_v1"), ("action_decode_v1",)
        given = {"pack_inputs_v1": pack, "vlm_encode_v1": encode, "action_decode_v1": decode}
        for file, own in zip(("policy_preprocessor", "policy_postprocessor"), names, strict=True):
            steps = [{"registry_name": f"groot_n1_7_{name}", "config": given[name]} for name in own]
            (tmp_path / f"{file}.json").write_text(json.dumps({"steps": steps}))
        return processor_kwargs(tmp_path, base)

    base = {"formalize_language": True, "use_percentiles": True, "modality_configs": {"mine": 1, "yours": 2}}
    kwargs, tag, statistics = written(pack)
    assert (tag, statistics) == ("mine", {"state": 1})
    assert kwargs["modality_configs"] == {"mine": whole, "yours": 2} and "unknown" not in kwargs
    assert base["modality_configs"] == {"mine": 1, "yours": 2}
    assert {k: v for k, v in kwargs.items() if k != "modality_configs"} == {
        **{"formalize_language": True, "state_dropout_prob": 0.4, "clip_outliers": False},
        **{"crop_fraction": 0.9, "use_albumentations": False, "use_percentiles": False, "use_relative_action": True},
    }
    del pack["embodiment_tag"]
    for part in ("video", "language"):
        incomplete = {**whole, part: {"modality_keys": []}}
        kwargs, tag, statistics = written(pack | {"modality_config": incomplete})
        assert (tag, statistics) == ("another", None) and kwargs["use_percentiles"] is True
        assert kwargs["modality_configs"] == {"mine": 1, "yours": 2}


# the policy's options


def test_seeds_and_steps_are_whole_numbers_within_their_bounds() -> None:
    for seed in (-(2**63), 0, 2**64 - 1):
        assert _seeded(seed).initial_seed() == seed % 2**64
    for wrong in (-(2**63) - 1, 2**64, True, 1.0, "1"):
        with pytest.raises(ToolkitError, match="seed"):
            _seeded(wrong)  # type: ignore[arg-type]
    assert _check_steps(1) == 1
    for steps in (0, -1, True, 1.5):
        with pytest.raises(ToolkitError, match="denoising_steps"):
            _check_steps(steps)  # type: ignore[arg-type]


def test_actions_agree_only_in_representation_reference_and_pose() -> None:
    relative, absolute = ActionRepresentation.RELATIVE, ActionRepresentation.ABSOLUTE
    assert _representation("arm", ActionConfig(relative)) == _representation(
        "arm", ActionConfig(relative, state_key="arm")
    )
    kinds = [
        ActionConfig(absolute),
        ActionConfig(relative),
        ActionConfig(relative, state_key="hand"),
        *(ActionConfig(relative, ActionType.EEF, form) for form in list(ActionFormat)[1:3]),
    ]
    assert len({_representation("arm", kind) for kind in kinds}) == len(kinds)
    lists = ([0, 1, 2, 3], [0, 2, 1, 3], [0, 1, 1, 3], [1, 2, 3, 4], [0, 1, 2], [0, 1, 2, 3, 4])
    assert len({_short(found) for found in lists}) == len(lists)


def test_weights_of_several_types_need_one_that_is_chosen(tiny_base: Path, tmp_path: Path, small_data: Path) -> None:
    from finished import finished_checkpoint

    done = finished_checkpoint(tiny_base, small_data, tmp_path / "done")
    model = Gr00tN1d7.from_pretrained(done)
    model.action_head.to(torch.bfloat16)
    model.save_pretrained(done)
    with pytest.raises(ToolkitError, match="weights of several types"):
        GR00TPolicy.from_pretrained(done)
    assert GR00TPolicy.from_pretrained(done, torch_dtype="float32").model.dtype == torch.float32


# the code that trained


def test_the_revision_is_the_commit_and_whether_files_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_files, "CHECKOUT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert code_files.git_revision() is None

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "a.py").write_text("1")
    git("add", "a.py")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "new.txt").write_text("a file that git does not know")
    assert code_files.git_revision() == commit
    (tmp_path / "a.py").write_text("2")
    assert code_files.git_revision() == f"{commit}+changes"
    (tmp_path / code_files.REVISION_FILE).write_text("copied\n")
    assert code_files.git_revision() == "copied"
    (tmp_path / code_files.REVISION_FILE).write_text("\n")
    assert code_files.git_revision() is None


def test_the_built_in_backbone_is_that_of_the_released_model() -> None:
    text, vision = QWEN3_VL_2B["text_config"], QWEN3_VL_2B["vision_config"]
    assert 2 * sum(text["rope_scaling"]["mrope_section"]) == text["head_dim"]
    thirds = [vision["depth"] // 4 * n - 1 for n in (1, 2, 3)]  # after a quarter, half and three quarters of the blocks
    assert vision["deepstack_visual_indexes"] == thirds


def test_a_datasets_fingerprint_is_that_worked_out_by_hand(tmp_path: Path) -> None:
    split = {"seed": 3, "part": "train", "val_fraction": 0.1, "fingerprint": "left out"}
    lines = "".join(f"{name}\0{content}\n" for name, content in {"data/a": "1", "meta/b": "2"}.items())
    deciding = json.dumps({"part": "train", "seed": 3, "val_fraction": 0.1})
    by_hand = hashlib.sha256((lines + deciding).encode()).hexdigest()
    assert dataset_fingerprint(tmp_path, split, {"data/a": "1", "meta/b": "2"}) == by_hand


def test_empty_lines_between_the_episodes_of_a_dataset_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "tasks.jsonl").write_text('{"task_index": 0}\n\n{"task_index": 1}\n')
    assert MetaFolder(tmp_path).lines("tasks.jsonl", "task_index") == [{"task_index": 0}, {"task_index": 1}]


def test_each_index_of_a_task_is_one_instruction(tmp_path: Path) -> None:
    def told(*tasks: object) -> dict[int, str]:
        lines = [json.dumps({"task_index": index, "task": task}) for index, task in tasks]  # type: ignore[misc]
        (tmp_path / "meta").mkdir(exist_ok=True)
        (tmp_path / "meta/tasks.jsonl").write_text("\n".join(lines))
        return read_tasks(MetaFolder(tmp_path), "v2.1")

    assert told((0, "lift"), (1, "push"), (0, "lift")) == {0: "lift", 1: "push"}
    with pytest.raises(ToolkitError, match=r'tasks.jsonl: task 0 is "lift" and "push". Give each instruction an index'):
        told((0, "lift"), (0, "push"))  # lists of two datasets, one behind the other
    with pytest.raises(ToolkitError, match=r"tasks.jsonl: task 1 has no instruction"):
        told((0, "lift"), (1, None))
