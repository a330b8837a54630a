"""Prefetch: what arrives is whole, what is broken off continues, what is wrong is said before it is used."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file

from finetune import prefetch as script
from finetune.create_base import create_base
from finetune.prefetch import PrefetchConfig, prefetch
from gr00t.errors import ToolkitError
from gr00t.model.finished_checkpoint import MANIFEST, verify_manifest
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from gr00t.model.weight_files import LM_HEAD
from toolkit.configuration import load

BASE, BACKBONE = "nvidia/GR00T-N1.7-tiny", "nvidia/tiny-backbone"


@dataclass
class Hub:
    """A stand-in for the hub's client: repositories are local folders, and it can break off or close a gate."""

    root: Path
    fetched: list[str]
    break_after: int | None = None
    errors: dict[str, Exception] | None = None

    def tree(self, repository: str, path_in_repo: str | None = None, **_: object):
        if self.errors and repository in self.errors:
            raise self.errors[repository]
        top = self.root / repository
        for path in sorted((top / (path_in_repo or "")).rglob("*")):
            size = {"size": path.stat().st_size} if path.is_file() else {}
            yield SimpleNamespace(path=path.relative_to(top).as_posix(), **size)

    def download(self, repository: str, *, local_dir: Path, allow_patterns: list[str], **_: object) -> str:
        for path in sorted((self.root / repository).rglob("*")):
            name = path.relative_to(self.root / repository).as_posix()
            target = Path(local_dir) / name
            if not path.is_file() or target.is_file() or not any(fnmatch.fnmatch(name, p) for p in allow_patterns):
                continue
            if self.break_after is not None and len(self.fetched) >= self.break_after:
                raise ConnectionResetError("secret-token")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
            self.fetched.append(f"{repository}/{name}")
        return str(local_dir)


@pytest.fixture
def hub(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The tiny base as the hub would have it: no tokenizer in it, but in the repository of its backbone."""
    root = tmp_path / "hub"
    shutil.copytree(tiny_base, root / BASE)
    shutil.copytree(root / BASE / "processor" / "vlm", root / BACKBONE)
    shutil.rmtree(root / BASE / "processor" / "vlm")
    (root / BACKBONE / "model.safetensors").write_bytes(b"many")
    (root / BACKBONE / "model.safetensors.index.json").write_text("{}")
    for name in ("config.json", "processor_config.json", "processor/processor_config.json"):
        path = root / BASE / name
        tiny_name = json.loads((tiny_base / "config.json").read_text())["model_name"]
        path.write_text(path.read_text().replace(f'"{tiny_name}"', f'"{BACKBONE}"'))
    (root / BASE / "optimizer.pt").write_bytes(b"unwanted")
    stand_in = Hub(root, [])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", staticmethod(stand_in.tree))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in.download)
    monkeypatch.chdir(tmp_path)
    return stand_in


def test_base_and_tokenizer_come_and_need_no_hub_afterwards(hub: Hub, tmp_path: Path) -> None:
    out, found = prefetch(PrefetchConfig(base=BASE, out=str(tmp_path / "base")))
    assert found.shards == 1 and found.parameters == sum(p.numel() for p in Gr00tN1d7.from_pretrained(out).parameters())
    assert (out / "processor" / "vlm" / "tokenizer.json").is_file()
    left_out = (
        "optimizer.pt",
        "processor/vlm/model.safetensors",
        "processor/vlm/model.safetensors.index.json",
        ".cache",
    )
    assert not any((out / name).exists() for name in left_out)
    assert not list(tmp_path.glob(".base*"))


def test_a_broken_off_download_continues_and_shows_no_secret(hub: Hub, tmp_path: Path) -> None:
    hub.break_after = 2
    config = PrefetchConfig(base=BASE, out=str(tmp_path / "base"))
    with pytest.raises(ToolkitError, match=r"ConnectionResetError\).*same command again") as error:
        prefetch(config)
    assert "secret" not in str(error.value) and not (tmp_path / "base").exists()
    hub.break_after = None
    prefetch(config)
    assert len(hub.fetched) == len(set(hub.fetched))
    before = list(hub.fetched)
    prefetch(config)  # there already: verified only
    assert hub.fetched == before


def test_one_suite_of_several_is_named_with_its_folder(hub: Hub, tmp_path: Path) -> None:
    suites = hub.root / "nvidia" / "GR00T-N1.7-SUITES"
    for name in ("spatial", "goal"):
        shutil.copytree(hub.root / BASE, suites / name)
    with pytest.raises(ToolkitError, match=r"take one of: \S+-SUITES/goal, \S+-SUITES/spatial\."):
        prefetch(PrefetchConfig(base="nvidia/GR00T-N1.7-SUITES"))
    out, _ = prefetch(PrefetchConfig(base="nvidia/GR00T-N1.7-SUITES/spatial"))
    assert out == Path("checkpoints/base/spatial") and (out / "config.json").is_file()
    assert not list((tmp_path / "checkpoints" / "base").glob(".spatial*"))


def test_where_it_comes_from_and_its_terms_come_along(hub: Hub, tmp_path: Path) -> None:
    for name in ("README.md", "LICENSE", "NOTICE.txt"):
        (hub.root / BASE / name).write_text("terms")
    out, _ = prefetch(PrefetchConfig(base=BASE, out=str(tmp_path / "base")))
    assert all((out / name).read_text() == "terms" for name in ("README.md", "LICENSE", "NOTICE.txt"))
    assert json.loads((out / "origin.json").read_text()) == {"base_model": BASE}
    copied, _ = prefetch(PrefetchConfig(base=str(out), out=str(tmp_path / "copy")))
    assert (copied / "origin.json").is_file() and (copied / "LICENSE").is_file()


COMMITS = {"main": "a" * 40, "v1": "b" * 40, "c" * 40: "c" * 40}


def note_commits(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hub's client does: the commit of each file, beside what it fetched."""

    def download(repository: str, *, local_dir: Path, revision: str | None, **rest: Any) -> str:
        note = Path(local_dir) / ".cache/huggingface/download/config.json.metadata"
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{COMMITS[revision or 'main']}\netag\n0.0\n")
        return hub.download(repository, local_dir=local_dir, **rest)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


@pytest.mark.parametrize(
    ("held", "asked"),
    [(None, None), (None, "main"), ("main", None), (None, "a" * 40), (None, "a" * 7), ("v1", "v1"), ("v1", "b" * 40)],
)
def test_the_revision_that_is_there_is_only_verified(
    held: str | None, asked: str | None, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note_commits(hub, monkeypatch)
    prefetch(PrefetchConfig(base=BASE, out=str(tmp_path / "base"), revision=held))
    before = list(hub.fetched)
    prefetch(PrefetchConfig(base=BASE, out=str(tmp_path / "base"), revision=asked))
    assert hub.fetched == before


@pytest.mark.parametrize(
    ("held", "asked", "told"),
    [
        (None, "v1", rf"holds {BASE}, revision main \(aaaaaaaaaaaa\); asked for is {BASE}, revision v1\."),
        ("v1", None, rf"holds {BASE}, revision v1 \(bbbbbbbbbbbb\); asked for is {BASE}, revision main\."),
        ("c" * 40, "d" * 40, rf"holds {BASE}, revision c{{40}}; asked for is {BASE}, revision d{{40}}\."),
    ],
)
def test_another_revision_is_refused_naming_both(
    held: str | None, asked: str | None, told: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note_commits(hub, monkeypatch)
    prefetch(PrefetchConfig(base=BASE, out=str(tmp_path / "base"), revision=held))
    before = list(hub.fetched)
    with pytest.raises(ToolkitError, match=rf"{told} .*out=FOLDER.*overwrite=true"):
        prefetch(PrefetchConfig(base=BASE, out=str(tmp_path / "base"), revision=asked))
    assert hub.fetched == before


def test_another_repository_or_folder_is_refused_naming_both(hub: Hub, tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(hub.root / BASE, hub.root / "other/base")
    out = str(tmp_path / "base")
    prefetch(PrefetchConfig(base=BASE, out=out))
    with pytest.raises(ToolkitError, match=rf"holds {BASE}, revision main; asked for is other/base, revision main\."):
        prefetch(PrefetchConfig(base="other/base", out=out))
    with pytest.raises(ToolkitError, match=rf"holds {BASE}, revision main; asked for is {tiny_base}\."):
        prefetch(PrefetchConfig(base=str(tiny_base), out=out))
    prefetch(PrefetchConfig(base="other/base", out=out, overwrite=True))
    with pytest.raises(ToolkitError, match=rf"holds other/base, revision main; asked for is {BASE}"):
        prefetch(PrefetchConfig(base=BASE, out=out))


def test_a_copy_is_what_its_folder_is_a_copy_of(hub: Hub, tmp_path: Path) -> None:
    first, _ = prefetch(PrefetchConfig(base=BASE, out=str(tmp_path / "base"), revision="v1"))
    copy = PrefetchConfig(base=str(first), out=str(tmp_path / "copy"))
    prefetch(copy)
    prefetch(copy)
    prefetch(PrefetchConfig(base=BASE, out=str(tmp_path / "copy"), revision="v1"))
    with pytest.raises(ToolkitError, match=r"holds .*revision v1; asked for is .*revision main"):
        prefetch(PrefetchConfig(base=BASE, out=str(tmp_path / "copy")))


def test_a_branch_that_moved_between_two_copies_is_another_revision(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note_commits(hub, monkeypatch)
    prefetch(PrefetchConfig(base=BASE, out=str(tmp_path / "old")))
    monkeypatch.setitem(COMMITS, "main", "e" * 40)
    new, _ = prefetch(PrefetchConfig(base=BASE, out=str(tmp_path / "new")))
    with pytest.raises(ToolkitError, match=r"main \(aaaaaaaaaaaa\); asked for is .*main \(eeeeeeeeeeee\)"):
        prefetch(PrefetchConfig(base=str(new), out=str(tmp_path / "old")))


def test_a_folder_of_an_earlier_version_counts_as_its_repository_but_as_no_revision(hub: Hub, tmp_path: Path) -> None:
    out, _ = prefetch(PrefetchConfig(base=BASE, out=str(tmp_path / "base")))
    for later in ("prefetched.json", str(MANIFEST)):
        (out / later).unlink()
    prefetch(PrefetchConfig(base=BASE, out=str(out)))
    with pytest.raises(ToolkitError, match=rf"holds {BASE}, of a revision that was not recorded; .*revision v1\."):
        prefetch(PrefetchConfig(base=BASE, out=str(out), revision="v1"))
    (out / "origin.json").unlink()
    with pytest.raises(ToolkitError, match="holds something of unrecorded origin; asked for is"):
        prefetch(PrefetchConfig(base=BASE, out=str(out)))
    prefetch(PrefetchConfig(base=str(out), out=str(out)))  # to verify what is there


def test_two_that_fetch_the_same_folder_do_not_take_it_from_each_other(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, refused = PrefetchConfig(base=BASE, out=str(tmp_path / "base")), list[str]()
    download = huggingface_hub.snapshot_download

    def meanwhile(*arguments: Any, **options: Any) -> str:
        found = download(*arguments, **options)
        with monkeypatch.context() as patch, pytest.raises(ToolkitError) as second:
            patch.setattr(huggingface_hub, "snapshot_download", download)
            prefetch(config)
        refused.append(str(second.value))
        return found

    monkeypatch.setattr(huggingface_hub, "snapshot_download", meanwhile)
    prefetch(config)
    assert refused and all("another process is writing it at this moment" in message for message in refused)
    verify_manifest(tmp_path / "base")


@pytest.mark.parametrize("place", ["color_object/checkpoint-10/state.json", "notes.txt", "base/results.csv"])
@pytest.mark.parametrize("make", ["prefetch", "create_base"])
def test_what_is_no_part_of_a_checkpoint_is_never_replaced(
    make: str, place: str, tiny_base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if place.startswith("base/"):  # beside one
        shutil.copytree(tiny_base, out)
    (out / place).parent.mkdir(parents=True, exist_ok=True)
    (out / place).write_text("precious")
    with pytest.raises(ToolkitError, match="no part of a checkpoint, and is never replaced") as refused:
        if make == "prefetch":
            prefetch(PrefetchConfig(base=str(tiny_base), out=str(out), overwrite=True))
        else:
            create_base(load("create_base", ["local=none", "model=tiny", f"out={out}", "overwrite=true"]))
    assert place in str(refused.value) and (out / place).read_text() == "precious"


def test_a_damaged_checkpoint_is_replaced_where_that_is_asked(tiny_base: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(tiny_base, tmp_path / "out"))
    (out / MANIFEST).write_text("{")
    (out / "config.json").unlink()
    (out / "LICENSE").write_text("terms")
    prefetch(PrefetchConfig(base=str(tiny_base), out=str(out), overwrite=True))
    verify_manifest(out)


def test_a_broken_off_start_for_another_revision_leaves_nothing_of_it(hub: Hub, tmp_path: Path) -> None:
    hub.break_after = 2
    with pytest.raises(ToolkitError, match="same command again"):
        prefetch(PrefetchConfig(base=BASE, out=str(tmp_path / "base"), revision="v1"))
    hub.break_after, half = None, list(hub.fetched)
    prefetch(PrefetchConfig(base=BASE, out=str(tmp_path / "base")))
    assert half and all(hub.fetched.count(name) == 2 for name in half)


def failure(kind: type[Exception]) -> Exception:
    return kind.__new__(kind, "secret-token")  # without the response that the constructor asks for


def test_a_gate_is_explained_and_the_weights_are_kept(hub: Hub, tmp_path: Path) -> None:
    hub.errors = {BACKBONE: failure(GatedRepoError)}
    config = PrefetchConfig(base=BASE, out=str(tmp_path / "base"))
    with pytest.raises(ToolkitError, match=rf"{BACKBONE} is gated: accept its terms at https://huggingface") as error:
        prefetch(config)
    assert "HF_TOKEN" in str(error.value) and "secret" not in str(error.value)
    fetched = list(hub.fetched)
    config.tokenizer = str(hub.root / BACKBONE)  # a folder does as well
    assert prefetch(config)[1].shards == 1 and hub.fetched == fetched


def test_a_wrong_name_is_told_apart_from_a_gate(hub: Hub) -> None:
    hub.errors = {"nvidia/wrong": failure(RepositoryNotFoundError)}
    with pytest.raises(ToolkitError, match=r"no repository of that name.*as its page spells it"):
        prefetch(PrefetchConfig(base="nvidia/wrong"))


def test_an_offline_node_is_shown_where_to_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ToolkitError, match=r"HF_HUB_OFFLINE is set.*where there is internet"):
        prefetch(PrefetchConfig(base="nvidia/not-cached-anywhere"))


def test_the_disk_is_looked_at_first(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    with pytest.raises(ToolkitError, match=r"has 1\.0 MB free, but [\d.]+ MB are to come.*out=FOLDER"):
        prefetch(PrefetchConfig(base=BASE, out=str(tmp_path / "base")))
    assert hub.fetched == [] and [path.name for path in tmp_path.iterdir()] == ["hub"]


def test_a_local_folder_is_copied_and_verified(tiny_base: Path, tmp_path: Path) -> None:
    out, found = prefetch(PrefetchConfig(base=str(tiny_base), out=str(tmp_path / "copy")))
    assert found.tags == []
    again = Gr00tN1d7.from_pretrained(out).state_dict()
    assert all(torch.equal(t, again[n]) for n, t in Gr00tN1d7.from_pretrained(tiny_base).state_dict().items())


def test_a_folder_whose_processor_lies_behind_a_link_is_copied_with_it(tmp_path: Path) -> None:
    (tmp_path / "shared/vlm").mkdir(parents=True)
    (tmp_path / "base").mkdir()
    (tmp_path / "base/processor").symlink_to(tmp_path / "shared")
    names = ["config.json", "processor/statistics.json", "processor/vlm/tokenizer.json"]
    for name in names:
        (tmp_path / "base" / name).write_text(name)
    source = script.FolderSource(str(tmp_path / "base"))
    assert list(source.sizes()) == names
    source.fetch(names, tmp_path / "out")
    assert [(tmp_path / "out" / name).read_text() for name in names] == names


def test_what_was_fetched_has_a_manifest_that_finds_later_damage(tiny_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    prefetch(PrefetchConfig(base=str(tiny_base), out=str(out)))
    verify_manifest(out)
    weights = next(out.glob("*.safetensors"))
    with weights.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(ToolkitError, match=r"(?s)safetensors has changed.*overwrite=true"):
        prefetch(PrefetchConfig(base=str(tiny_base), out=str(out)))


def test_where_the_target_is_a_link_the_copy_lies_behind_it(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "far" / "base")
    prefetch(PrefetchConfig(base=str(tiny_base), out=str(tmp_path / "out")))
    assert (tmp_path / "out").is_symlink() and (tmp_path / "far" / "base" / "config.json").is_file()


def cut(folder: Path) -> None:
    shard = next(folder.glob("model-*"))
    shard.write_bytes(shard.read_bytes()[:-8])


def change_shard(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    shard = next(folder.glob("model-*"))
    tensors = {name: tensor.clone() for name, tensor in load_file(shard).items()}
    change(tensors)
    save_file(tensors, shard)


def forget(folder: Path) -> None:
    change_shard(folder, lambda tensors: tensors.pop("action_head.vlln.weight"))


def reshape(folder: Path) -> None:
    change_shard(folder, lambda tensors: tensors.update({"action_head.vlln.weight": torch.ones(64, 1)}))


def other_total(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["metadata"]["total_size"] += 1
    path.write_text(json.dumps(index))


def pointer(folder: Path) -> None:
    path = folder / "processor" / "vlm" / "tokenizer.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 11422654\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "damaged or cut short"),
        (forget, "puts .action_head.vlln.weight. into model-00001"),
        (reshape, r"vlln\.weight.*\[64, 1\].*\[64\]"),
        (other_total, "speaks of"),
        (pointer, "git-lfs pointer"),
    ],
)
def test_what_is_not_whole_is_not_put_in_place(damage, message: str, tiny_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "broken"))
    damage(base)
    with pytest.raises(ToolkitError, match=message):
        prefetch(PrefetchConfig(base=str(base), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ToolkitError, match=rf"{message}[\s\S]*overwrite=true"):
        prefetch(PrefetchConfig(base=str(tiny_base), out=str(base)))
    prefetch(PrefetchConfig(base=str(tiny_base), out=str(base), overwrite=True))


def test_an_index_that_leaves_out_the_tied_copy_in_its_size_is_right_too(tiny_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    path = base / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    head = load_file(base / index["weight_map"][LM_HEAD])[LM_HEAD]
    index["metadata"]["total_size"] -= head.numel() * head.itemsize
    path.write_text(json.dumps(index))
    (base / MANIFEST).unlink()
    prefetch(PrefetchConfig(base=str(base), out=str(base)))
