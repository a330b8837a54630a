"""A published dataset: a whole LeRobot dataset, a card of what was counted, and nothing that must stay at home."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import FakeHub, running_hub
from fake_keys import HUGGING_FACE, KEYS
from huggingface_hub import DatasetCard
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_lerobot3 import WRITTEN
from test_table_images import drawn, encoded, png, write_dataset

from conflict_panda_config import MODALITY_CONFIG
from data_prep.adopt import adopt
from data_prep.doctor.examine import examine
from data_prep.published_dataset import publish_dataset
from gr00t.data.layout import DatasetLayout, dataset_fingerprint
from gr00t.data.step_reader import StepReader
from gr00t.errors import ToolkitError
from toolkit import publication
from toolkit.configuration import load
from toolkit.publication import Machine, Noise, Published, find_private


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gr00t.file_replacement._sync", lambda _: None)


def publish(data: Path, out: Path, *more: str) -> Published:
    split = [] if any(argument.startswith("split=") for argument in more) else ["split=color_object"]
    return publish_dataset(load("publish", ["local=none", *split, f"data_dir={data}", f"out={out}", *more]))


def refusal(data: Path, out: Path, *more: str) -> str:
    before = sorted(out.rglob("*")) if out.exists() else None
    with pytest.raises(ToolkitError) as error:
        publish(data, out, *more)
    assert (sorted(out.rglob("*")) if out.exists() else None) == before
    assert not list(out.parent.glob(f".{out.name}.partial*"))
    return str(error.value)


@pytest.fixture
def data(small_data: Path, tmp_path: Path) -> Path:
    """A data_dir of one's own to spoil."""
    return Path(shutil.copytree(small_data, tmp_path / "data", ignore=shutil.ignore_patterns(".cache")))


@pytest.fixture(scope="module")
def published(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test's split, published."""
    said = ("licence=cc-by-4.0", "recorded='By an expert | in simulation.'", "repo_id=me/conflict")
    return publish(small_data, tmp_path_factory.mktemp("published") / "set", *said).out


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def images_of(root: Path, episode: int = 1, frame: int = 3) -> dict[str, np.ndarray]:
    return StepReader(root, MODALITY_CONFIG).step(episode, frame).images


# -- the folder --------------------------------------------------------------------------------------------------------


def test_both_parts_are_the_datasets_they_are_made_of(published: Path, small_data: Path) -> None:
    for part in ("train", "conflict"):
        mine, theirs = published / part, small_data / "color_object" / part
        wanted = {name for name in files_below(theirs) if not name.startswith(".cache")}
        assert {name for name in files_below(mine) if not name.startswith(".cache")} == wanted
        for name in wanted - {"meta/split.json"}:
            assert (mine / name).read_bytes() == (theirs / name).read_bytes(), name
        assert DatasetLayout(mine).fingerprint == DatasetLayout(theirs).fingerprint
        assert DatasetLayout(mine).val_episodes == DatasetLayout(theirs).val_episodes
        assert dataset_fingerprint(mine, DatasetLayout(mine).split) == DatasetLayout(mine).fingerprint
    top = {name for name in files_below(published) if "/" not in name}
    assert top == {"README.md", "published.json", "first_frames_train.jpg", "first_frames_conflict.jpg"}


def test_the_doctor_finds_it_sound_and_training_reads_it(published: Path) -> None:
    report, _ = examine(published, MODALITY_CONFIG)
    assert not report.findings("error", "warning") and len(report.datasets) == 3
    assert set(images_of(published / "train")) == {"image", "wrist_image"}


def test_folders_of_the_machine_that_converted_stay_there(published: Path, small_data: Path) -> None:
    recorded = DatasetLayout(small_data / "color_object/train").split["source_folder"]
    assert str(Path(recorded)).startswith("/")
    assert json.loads((published / "train/meta/split.json").read_text())["source_folder"] == Path(recorded).name
    for name in files_below(published):
        assert str(small_data.parent).encode() not in (published / name).read_bytes(), name


@pytest.mark.parametrize("version", [pytest.param("v2.1", marks=pytest.mark.long), "v3.0"])
def test_images_in_the_tables_are_published_in_them(version: str, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data/cubes/train", version, png)
    adopt(load("adopt", ["local=none", f"dataset={root}", "write=true", "val_fraction=0"]))
    out = publish(tmp_path / "data", tmp_path / "out", "split=cubes", "split.instruction=x", "part=train").out
    assert np.array_equal(images_of(out)["image"][0], drawn(1, 3, "image"))
    assert {name for name in files_below(out) if "first_frames" in name} == {"first_frames.jpg"}
    assert not examine(out, MODALITY_CONFIG, fast=True)[0].findings("error")


def test_images_beside_the_tables_go_along_and_only_those_that_they_name(tmp_path: Path) -> None:
    root = tmp_path / "data/cubes"

    def cell(episode: int, frame: int, camera: str) -> str:
        path = root / f"images/{camera}/episode_{episode}/frame_{frame}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(drawn(episode, frame, camera)))
        return path.relative_to(root).as_posix()

    (root).mkdir(parents=True)
    write_dataset(root, "v3.0", cell)
    (root / "images/of_nobody.png").write_bytes(encoded(drawn(0, 0, "image")))
    adopt(load("adopt", ["local=none", f"dataset={root}", "write=true", "val_fraction=0"]))
    out = publish(tmp_path / "data", tmp_path / "out", "split=cubes", "split.instruction=x").out
    assert np.array_equal(images_of(out)["image"][0], drawn(1, 3, "image"))
    assert len(list((out / "images").rglob("*.png"))) == 2 * (24 + 30 + 27)
    spoilt = root / "images/image/episode_1/frame_7.png"
    text = PngInfo()
    text.add_text("Comment", HUGGING_FACE)
    Image.open(spoilt).save(spoilt, pnginfo=text)
    message = refusal(tmp_path / "data", tmp_path / "again", "split=cubes", "split.instruction=x")
    assert "episode_1/frame_7.png" in message and "a Hugging Face token" in message and HUGGING_FACE not in message


@pytest.mark.parametrize("name", ["recorded", pytest.param("converted", marks=pytest.mark.long)])
def test_videos_of_several_episodes_are_published_whole(name: str, tmp_path: Path) -> None:
    root = Path(shutil.copytree(WRITTEN / name, tmp_path / "data/cubes/train"))
    adopt(load("adopt", ["local=none", f"dataset={root}", "write=true"]))
    out = publish(tmp_path / "data", tmp_path / "out", "split=cubes", "split.instruction=x", "part=train").out
    assert all(np.array_equal(images_of(out)[c], images_of(root)[c]) for c in ("image", "wrist_image"))
    kept = {n for n in files_below(root) if not n.startswith((".cache", "README"))}
    assert (
        files_below(out)
        - {"README.md", "published.json", "first_frames.jpg"}
        - {n for n in files_below(out) if n.startswith(".cache")}
        == kept
    )


def test_what_meta_does_not_name_stays_where_it_is(data: Path, tmp_path: Path) -> None:
    train = data / "color_object/train"
    strays = ("notes.txt", ".git/config", ".cache/tables-1/part.arrow", "meta/.info.json.swp", "meta/run.log")
    strays += ("videos/chunk-000/notes.txt", "data/chunk-000/._episode_000000.parquet", "images/x.png")
    strays += ("data/chunk-000/episode_000099.parquet", "meta/.hidden/x.json")
    for name in strays:
        (train / name).parent.mkdir(parents=True, exist_ok=True)
        (train / name).write_text(HUGGING_FACE)
    made = publish(data, tmp_path / "out")
    assert not set(strays) & files_below(made.out / "train")
    note = next(note for note in made.notes if "not published" in note)
    assert "meta/run.log" in note and "episode_000099" in " ".join(made.notes)
    found, _ = examine(made.out, MODALITY_CONFIG)  # the fingerprint is that of what is published
    assert not found.findings("error", "warning")


def test_episodes_that_are_left_out_go_along_with_the_list_where_they_are_there(data: Path, tmp_path: Path) -> None:
    train = data / "color_object/train"
    split = json.loads((train / "meta/split.json").read_text())
    kept = next(i for i in range(5) if i not in split["val_episodes"])
    (train / "meta/split.json").write_text(json.dumps({**split, "exclude": [kept]}))
    made = publish(data, tmp_path / "whole")
    assert f"data/chunk-000/episode_{kept:06d}.parquet" in files_below(made.out / "train")
    assert DatasetLayout(made.out / "train").excluded == {kept}
    for path in train.glob(f"videos/*/*/episode_{kept:06d}.mp4"):
        path.unlink()
    publish(data, tmp_path / "without")  # its videos are damaged, say, and were taken away


def test_every_camera_of_info_json_goes_along(data: Path, tmp_path: Path) -> None:
    """LeRobot reads them all, whichever the policy is given."""
    modality = data / "color_object/train/meta/modality.json"
    sections = json.loads(modality.read_text())
    one = {"image": sections["video"]["image"]}
    modality.write_text(json.dumps({**sections, "video": one}))
    robot = tmp_path / "robot.py"
    own = Path("conflict_panda_config.py").read_text().replace('"image", "wrist_image"', '"image"')
    robot.write_text(own)
    out = publish(data, tmp_path / "out", "part=train", f"modality_config={robot}").out
    assert len(list(out.rglob("*wrist_image/*.mp4"))) == 5
    card = (out / "README.md").read_text()
    assert "modality_config=robot.py" in card and "MODALITY_CONFIG = {" in card and '"wrist_image"' not in card
    next((data / "color_object/train/videos").rglob("*wrist_image/*.mp4")).unlink()
    assert "is missing" in refusal(data, tmp_path / "again", "part=train", f"modality_config={robot}")


def test_hard_links_share_tables_and_videos(data: Path, tmp_path: Path) -> None:
    out = publish(data, tmp_path / "out", "link=true", "part=train").out
    train = data / "color_object/train"
    shared = {name for name in files_below(out) if (train / name).is_file() and (train / name).samefile(out / name)}
    assert shared == {name for name in files_below(train) if name.startswith(("data/", "videos/"))}


def test_links_that_lead_outside_are_followed_when_asked(data: Path, tmp_path: Path) -> None:
    train = data / "color_object/train"
    elsewhere = tmp_path / "elsewhere.parquet"
    (train / "data/chunk-000/episode_000001.parquet").rename(elsewhere)
    (train / "data/chunk-000/episode_000001.parquet").symlink_to(elsewhere)
    message = refusal(data, tmp_path / "out", "part=train")
    assert "episode_000001.parquet is reached by a link" in message and "follow_links=true" in message
    made = publish(data, tmp_path / "out", "part=train", "follow_links=true").out
    copied = made / "data/chunk-000/episode_000001.parquet"
    assert not copied.is_symlink() and copied.read_bytes() == elsewhere.read_bytes()
    data.joinpath("other").symlink_to(data / "color_object")  # the folder itself may be a link
    assert refusal(data, tmp_path / "again", "split=other", "split.instruction=x") == message.replace(
        "color_object", "other"
    )


# -- the card ----------------------------------------------------------------------------------------------------------


def test_the_metadata_are_those_of_hugging_face(published: Path) -> None:
    found = DatasetCard.load(published / "README.md").data.to_dict()
    assert found["license"] == "cc-by-4.0" and found["task_categories"] == ["robotics"]
    assert found["tags"] == ["LeRobot", "gr00t", "robotics", "color_object", "panda_wristcam"]
    assert {of["config_name"]: sorted(published.glob(of["data_files"])) for of in found["configs"]} == {
        part: sorted((published / part / "data").rglob("*.parquet")) for part in ("train", "conflict")
    }


def test_the_card_says_what_was_counted(published: Path, small_data: Path) -> None:
    card = (published / "README.md").read_text()
    frames = [sum(e.length for e in DatasetLayout(published / part).episodes) for part in ("train", "conflict")]
    for row in ("Episodes | 5 | 1", "Episodes held out | 2 | 0", f"Frames | {frames[0]} | {frames[1]}"):
        assert f"| {row} |" in card
    assert '- "pick up the color-matching object" (6 episodes)' in card
    assert "| action.arm | panda_joint1, panda_joint2," in card and "color and object point at the same" in card
    assert "By an expert | in simulation." in card and "`train`: 5 trajectories simulated in ManiSkill" in card
    assert "hf download me/conflict --repo-type dataset --local-dir data/color_object" in card
    assert "launch_finetune_local.py split=color_object dataset.data_dir=data" in card
    assert "None" not in card and "{{" not in card and "{%" not in card
    with Image.open(published / "first_frames_train.jpg") as strip:
        assert strip.height == 2 * 120 and strip.width > 5 * 100
    shown = np.asarray(Image.open(published / "first_frames_train.jpg").convert("RGB"))[:120, :120]
    assert shown.std() > 0


def test_what_is_unknown_is_said_to_be_so(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data/cubes", "v2.1", png)
    adopt(load("adopt", ["local=none", f"dataset={root}", "write=true", "val_fraction=0"]))
    (root / "meta/split.json").unlink()
    made = publish(tmp_path / "data", tmp_path / "out", "split=cubes", "split.instruction='lift it'")
    card = (made.out / "README.md").read_text()
    assert "license: unknown" in card and "This was not recorded." in card and "conflict split" not in card
    assert "--local-dir data/cubes/train" in card and "split=cubes 'split.instruction=lift it'" in card
    assert all(any(word in note for note in made.notes) for word in ("licence=", "recorded=", "data_prep.adopt"))


# -- refused before the first byte -------------------------------------------------------------------------------------


def spoil_json(path: Path, **more: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def spoil_column(path: Path, name: str, value: object) -> None:
    table = pq.read_table(path)
    pq.write_table(table.append_column(name, pa.array([value] * len(table))), path)


TABLE = "data/chunk-000/episode_000001.parquet"
PRIVATE = {
    "meta": "a Hugging Face token",
    "column": "an absolute path",
    "struct": "a home folder",
    "bytes": "a wandb key",
    "schema": "a home folder",
    "tags": "an absolute path",
    "recorded": "an API key",
}


@pytest.mark.parametrize("kind", PRIVATE)
def test_what_must_stay_at_home_is_refused_wherever_it_is(kind: str, data: Path, tmp_path: Path) -> None:
    train, more = data / "color_object/train", []
    for part in ("train", "conflict"):  # whose hashes would show the change first
        split = data / f"color_object/{part}/meta/split.json"
        spoil_json(split, fingerprint=None, files={})
    if kind == "meta":
        spoil_json(train / "meta/info.json", note=HUGGING_FACE)
    elif kind == "column":
        spoil_column(train / TABLE, "note", "see /scratch/ann/set")
    elif kind == "struct":
        spoil_column(train / TABLE, "note", [{"path": "/home/ann/x.png"}])
    elif kind == "bytes":
        spoil_column(train / TABLE, "note", b"\xff\0wandb " + KEYS["wandb"].encode() + b"\0")
    elif kind == "schema":
        table = pq.read_table(train / TABLE)
        pq.write_table(table.replace_schema_metadata({"made by": "/home/ann/record.py"}), train / TABLE)
    elif kind == "tags":
        tagged(next((train / "videos").rglob("*.mp4")), "/scratch/ann/take1")
    else:
        more = [f"recorded='with {KEYS['openai']}'"]
        with pytest.raises(ToolkitError, match="recorded holds what looks like"):
            publish(data, tmp_path / "out", *more)
        return
    message = refusal(data, tmp_path / "out", *more)
    assert PRIVATE[kind] in message and "published dataset would hold" in message
    assert "ann" not in message.replace("cannot", "") and HUGGING_FACE not in message and KEYS["wandb"] not in message


def tagged(video: Path, comment: str) -> None:
    """The same video with a comment in its container."""
    with av.open(str(video)) as source, av.open(str(video.with_suffix(".new.mp4")), "w") as target:
        target.metadata["comment"] = comment
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    video.with_suffix(".new.mp4").replace(video)


def test_names_of_the_machine_are_found_in_texts_and_not_in_frames() -> None:
    machine = Machine(names=("ann_example",))
    said = {"x, column task": "by ann_example", "x, its images": Noise("x/ann_example /ab/cd"), "y": "/ab/cd"}
    found = [(f.place, f.what) for f in find_private(said, machine, lambda _: False)]
    assert found == [("x, column task", "a login or host name"), ("y", "an absolute path")]
    assert not list(find_private({"x": "ann_example"}, machine, lambda _: False, "by ann_example"))


def test_a_login_that_is_a_word_of_the_card_gives_nobody_away(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here() -> Machine:
        return Machine(names=("robotics", "matching"))

    monkeypatch.setattr(Machine, "here", here)
    publish(data, tmp_path / "out", "part=conflict")
    spoil_column(data / "color_object/conflict/data/chunk-000/episode_000000.parquet", "note", "by matching_2")
    spoil_json(data / "color_object/conflict/meta/split.json", fingerprint=None, files={})
    publish(data, tmp_path / "other", "part=conflict")
    monkeypatch.setattr(Machine, "here", lambda: Machine(names=("matching_2",)))
    message = refusal(data, tmp_path / "again", "part=conflict")
    assert "episode_000000.parquet, column note:1: a login or host name" in message


@pytest.mark.parametrize("template", ["../../{episode_index}.parquet", "/etc/passwd", "data/../../x.parquet"])
def test_a_template_that_leaves_the_folder_is_refused(template: str, data: Path, tmp_path: Path) -> None:
    spoil_json(data / "color_object/train/meta/info.json", data_path=template)
    assert "leaves the dataset" in refusal(data, tmp_path / "out")


def test_a_camera_that_leaves_the_folder_is_refused_though_the_policy_does_not_use_it(
    data: Path, tmp_path: Path
) -> None:
    info = data / "color_object/train/meta/info.json"
    features = json.loads(info.read_text())["features"]
    spoil_json(info, features={**features, "../../../../x": features["observation.images.image"]})
    assert "leaves the dataset" in refusal(data, tmp_path / "out")


def test_an_unsound_dataset_is_refused_with_what_the_doctor_says(data: Path, tmp_path: Path) -> None:
    (data / "color_object/train" / TABLE).write_bytes(b"no table")
    message = refusal(data, tmp_path / "out")
    assert "is not sound" in message and "python -m data_prep.check" in message


def test_a_video_that_changed_since_the_conversion_is_refused(data: Path, tmp_path: Path) -> None:
    video = sorted((data / "color_object/train/videos").rglob("*image/*.mp4"))[0]
    tagged(video, "another")
    message = refusal(data, tmp_path / "out")
    assert "is not as it was written (1 such files)" in message and video.name in message


def test_folders_and_names_are_refused_early(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert "does not exist. Convert the recordings first" in refusal(data, out, "split=color_size")
    assert "part=trian" in refusal(data, out, "part=trian")
    assert "are the same folder" in refusal(data, data / "color_object")
    assert "lies inside" in refusal(data, data / "color_object/train/out")
    assert "say repo_id=owner/name" in refusal(data, out, "upload=true")
    assert "as Hugging Face does" in refusal(data, out, "licence='CC BY'")
    monkeypatch.setattr(publication, "free_space", lambda _: 5)
    assert "has 5 bytes free, but the published dataset takes" in refusal(data, out)


def test_only_what_was_published_is_replaced_and_when_asked(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("")
    assert "holds other files than a published dataset" in refusal(data, out, "overwrite=true")
    (out / "thesis.tex").unlink()
    publish(data, out, "part=conflict")
    assert "is a published dataset already. Say overwrite=true" in refusal(data, out)
    made = publish(data, out, "part=train", "overwrite=true")
    assert len(list(made.out.rglob("*.parquet"))) == 5


# -- upload ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub(monkeypatch) as found:
        yield found


ASKED = ("repo_id=me/cubes", "upload=true")
CUBES = "dataset/me/cubes"


def test_an_upload_sends_what_is_published_in_one_commit_and_replaces_what_was(
    data: Path, hub: FakeHub, tmp_path: Path
) -> None:
    made = publish(data, tmp_path / "out", "part=train", *ASKED)
    assert made.address == "https://huggingface.co/datasets/me/cubes" and hub.repositories == {CUBES: True}
    sent = {name: (made.out / name).read_bytes() for name in made.files}
    assert hub.sent(CUBES) == {".gitattributes": b"", **sent} and len(hub.commits) == 1
    assert hub.tags[CUBES]["v2.1"] == hub.sent(CUBES)  # LeRobot asks for the tag of its version
    hub.files[CUBES] |= {"data/chunk-000/episode_000077.parquet": b"older", "LICENSE": b"theirs"}
    (made.out / "README.md").write_text((made.out / "README.md").read_text() + "\nWritten by hand.\n")
    (made.out / ".cache").mkdir()
    (made.out / ".cache/x.arrow").write_bytes(b"")
    publish(data, tmp_path / "out", "part=train", *ASKED)
    changed = {**sent, "README.md": (made.out / "README.md").read_bytes(), "LICENSE": b"theirs", ".gitattributes": b""}
    assert hub.sent(CUBES) == changed == hub.tags[CUBES]["v2.1"]
    assert (
        len(hub.received) == len(set(hub.received)) == sum(name.endswith((".parquet", ".mp4", "jpg")) for name in sent)
    )


def test_an_interrupted_upload_leaves_nothing_and_is_continued(data: Path, hub: FakeHub, tmp_path: Path) -> None:
    hub.refusal = ("/commit/", 403)
    with pytest.raises(ToolkitError, match=r"may not write to me/cubes.*out is whole and will be sent as it is"):
        publish(data, tmp_path / "out", "part=conflict", *ASKED)
    assert hub.sent(CUBES) == {".gitattributes": b""} and not hub.commits and CUBES not in hub.tags
    stored, hub.refusal = len(hub.received), None
    publish(data, tmp_path / "out", "part=conflict", *ASKED)
    assert len(hub.received) == stored and len(hub.commits) == 1


def test_a_file_that_fails_underway_is_no_crash(data: Path, hub: FakeHub, tmp_path: Path) -> None:
    hub.refusal, hub.words = ("/store/", 400), HUGGING_FACE
    with pytest.raises(ToolkitError, match="start the same command again") as error:
        publish(data, tmp_path / "out", "part=conflict", *ASKED)
    assert HUGGING_FACE not in str(error.value)


def test_a_public_repository_is_not_taken_for_a_private_one(data: Path, hub: FakeHub, tmp_path: Path) -> None:
    out = publish(data, tmp_path / "out", "part=conflict", *ASKED, "private=false").out
    assert hub.repositories == {CUBES: False}
    before = dict(hub.sent(CUBES))
    (out / "README.md").write_text((out / "README.md").read_text() + "\nMore.\n")
    with pytest.raises(ToolkitError, match="everybody sees it"):
        publish(data, out, "part=conflict", *ASKED)
    assert hub.sent(CUBES) == before


def test_what_was_damaged_since_is_not_sent(data: Path, hub: FakeHub, tmp_path: Path) -> None:
    out = publish(data, tmp_path / "out", "part=conflict").out
    video = next(out.rglob("*.mp4"))
    video.write_bytes(video.read_bytes()[:-1] + b"\1")
    message = refusal(data, out, "part=conflict", *ASKED)
    assert f"{video} is not as it was written" in message and "overwrite=true" in message and not hub.repositories


def test_what_was_added_by_hand_is_looked_at_before_it_is_sent(data: Path, hub: FakeHub, tmp_path: Path) -> None:
    out = publish(data, tmp_path / "out", "part=conflict").out
    spoil_column(out / "data/chunk-000/episode_000000.parquet", "note", HUGGING_FACE)
    assert "a Hugging Face token" in refusal(data, out, "part=conflict", *ASKED) and not hub.repositories
