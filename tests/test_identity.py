"""A run is what it says: any input that is edited between two starts is refused by name; how it is computed, warned."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from robots import absolute_arm, robot_file
from test_training import ROOT, config

from finetune.recipe import FinetuneConfig
from finetune.recipe.recipe_identity import (
    ENTRIES,
    RELEASE_MARK,
    UNKNOWN,
    befores,
    completed,
    differences,
    flat,
    identity_digest,
    recipe,
    trained_by,
)
from finetune.recipe.train_config import AugmentConfig, TrainConfig
from finetune.slurm.done_and_busy import found_result, is_finished, left_result
from finetune.training import run_identity as conditions
from finetune.training.checkpointing import Checkpoint, newest_checkpoint
from finetune.training.dataloader import open_datasets
from finetune.training.run_folder import RunFolder
from finetune.training.run_identity import Digests, run_identity
from finetune.training.train import finetune
from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json
from gr00t.file_replacement import file_sha256, write_json
from toolkit.composition import read_yaml
from toolkit.configuration import load

MORE = ("train.max_steps=2", "train.save_steps=1")
# The leaf keys of the first identities. A key that comes later declares `before=VALUE` instead of standing here.
FIRST = {
    *("train.max_steps", "train.global_batch_size", "train.learning_rate", "train.weight_decay", "train.warmup_ratio"),
    *("train.adam_beta1", "train.adam_beta2", "train.adam_eps", "train.max_grad_norm", "train.seed", "train.precision"),
    *("train.tune.projector", "train.tune.diffusion_model", "train.tune.vlln", "train.tune.llm", "train.tune.visual"),
    *("train.tune.top_llm_layers", "augment.crop_fraction", "augment.random_rotation_angle", "augment.views"),
    *("augment.color_jitter.brightness", "augment.color_jitter.contrast", "augment.color_jitter.saturation"),
    *("augment.color_jitter.hue", "augment.state_dropout", "dataset.tail", "dataset.embodiment_tag"),
}


@dataclasses.dataclass(frozen=True)
class Site:
    """A finished run of two steps with a dataset, a base and folders of its own."""

    root: Path

    def config(self, *more: str) -> FinetuneConfig:
        return config(self.root, self.root / "data", self.root / "base", *MORE, *more)

    def start(self, *more: str) -> tuple[Checkpoint | None, bool]:
        """What the run's next start finds: where it continues from, and whether it is finished."""
        settings = self.config(*more)
        identity, files = run_identity(settings, self.root / "base", open_datasets(settings))
        return RunFolder(SimpleNamespace(config=settings, engine=Alone()), identity, files).starting_point()  # type: ignore[arg-type]

    def refusal(self, *more: str) -> str:
        with pytest.raises(ToolkitError) as error:
            self.start(*more)
        return str(error.value)


class Alone:
    """As much of an engine as a start needs."""

    is_main = True

    def tell(self, text: str) -> str:
        return text


@pytest.fixture(scope="module")
def site(small_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    root = tmp_path_factory.mktemp("site")
    shutil.copytree(small_data, root / "data")
    shutil.copytree(tiny_base, root / "base")
    finetune(Site(root).config())
    return Site(root)


@pytest.fixture
def own(site: Site, tmp_path: Path) -> Site:
    """The same run in a folder of its own, to be damaged."""
    shutil.copytree(site.root, tmp_path / "own", ignore=shutil.ignore_patterns("wandb"))
    return Site(tmp_path / "own")


def test_the_docs_call_no_key_changeable_that_is_compared() -> None:
    compared = set(recipe(dataclasses.asdict(load("finetune", ["local=none"], check_here=False))))
    assert "train.precision" in compared
    for page, begin, end in (
        ("docs/concepts/resuming.md", "**With a warning only**", "\n\n"),
        ("finetune.md", "**What may change, with a warning**", "\n- "),
    ):
        text = " ".join((ROOT / page).read_text().partition(begin)[2].partition(end)[0].split())
        assert not compared & {*re.findall(r"`([\w.]+)`", text)}
        assert "the precision that `train.precision=auto` or `fastest` finds" in text


# -- files -------------------------------------------------------------------------------------------------------------


def flip(path: Path, place: float = 0.55) -> None:
    """Another byte, the same size and time of change."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(int(before.st_size * place))
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def spaced(path: Path) -> None:
    path.write_text(path.read_text() + " ")


def other_action(path: Path) -> None:
    table = pq.read_table(path)
    values = table.column("action").to_pylist()
    values[0][0] += 0.01
    column = table.schema.get_field_index("action")
    pq.write_table(table.set_column(column, "action", [values]), path)


def one_more_held_out(path: Path) -> None:
    split = read_json(path)
    rest = [i for i in range(5) if i not in split["val_episodes"]]
    write_json(path, {**split, "val_episodes": [*split["val_episodes"], rest[0]]})


TRAIN = "data/color_object/train"
VIDEO = "videos/chunk-000/observation.images.image/episode_000003.mp4"
TABLE = "data/chunk-000/episode_000001.parquet"
META = ("info.json", "episodes.jsonl", "tasks.jsonl", "modality.json", "stats.json", "relative_stats.json")
VLM = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json", "config.json")
PROCESSOR = ("processor_config.json", "statistics.json", "embodiment_id.json")
EDITS: dict[str, tuple[Any, str]] = {
    **{f"{TRAIN}/meta/{name}": (spaced, f"meta/{name}") for name in META},
    f"{TRAIN}/meta/split.json": (one_more_held_out, "meta/split.json (val_episodes)"),
    f"{TRAIN}/{VIDEO}": (flip, VIDEO),
    f"{TRAIN}/{TABLE}": (other_action, TABLE),
    **{f"base/{name}": (spaced, name) for name in ("config.json", "model.safetensors.index.json", *PROCESSOR)},
    **{f"base/processor/vlm/{name}": (spaced, f"processor/vlm/{name}") for name in VLM},
    "base/model-00001-of-00001.safetensors": (flip, "model-00001-of-00001.safetensors"),
}


@pytest.fixture
def edited(site: Site, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a file that has been edited, and is put back afterwards."""
    path = site.root / request.param
    before, times = path.read_bytes(), path.stat()
    EDITS[request.param][0](path)
    yield request.param
    path.write_bytes(before)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("edited", EDITS, indirect=True)
def test_every_edited_file_is_refused_by_name(edited: str, site: Site) -> None:
    owner = "model.base" if edited.startswith("base/") else "the dataset"
    message = site.refusal()
    assert "belongs to a run with other settings" in message
    assert f"  {owner}: changed {EDITS[edited][1]}\n" in message


@pytest.mark.parametrize("edited", [f"{TRAIN}/{VIDEO}", "base/processor/vlm/tokenizer.json"], indirect=True)
def test_a_finished_checkpoint_is_not_taken_for_that_of_other_files(edited: str, site: Site, tmp_path: Path) -> None:
    message = site.refusal(f"run_dir={tmp_path}/gone")
    name = "videos" if edited.endswith("mp4") else EDITS[edited][1]  # single videos are named in the run folder
    assert "output_dir" in message and f": changed {name}\n" in message


def test_nothing_edited_is_nothing_refused(site: Site) -> None:
    start, finished = site.start()
    assert start is not None and start.step == 2 and finished


def test_a_file_that_is_new_or_lost_is_said_so(own: Site) -> None:
    (own.root / TRAIN / "meta" / "note.json").write_text("{}")
    (own.root / "base/processor/vlm/chat_template.jinja").rename(own.root / "base/processor/vlm/other.jinja")
    shutil.copy(own.root / "base/processor/vlm/other.jinja", own.root / "base/processor/vlm/chat_template.jinja")
    (own.root / "base/processor/vlm/config.json").rename(own.root / "base/processor/vlm/old.txt")
    shutil.copy(own.root / "base/processor/vlm/old.txt", own.root / "base" / "unused.json")
    message = own.refusal()
    assert "the dataset: new meta/note.json" in message and "model.base: lost processor/vlm/config.json" in message


def test_a_tokenizer_outside_of_the_base_is_looked_at_too(site: Site, tmp_path: Path) -> None:
    base = Path(shutil.copytree(site.root / "base", tmp_path / "base"))
    name = read_json(base / "processor_config.json")["processor_kwargs"]["model_name"]
    outside = tmp_path / name
    outside.parent.mkdir(parents=True, exist_ok=True)
    (base / "processor" / "vlm").rename(outside)
    settings = site.config()
    identity, _ = run_identity(settings, base, open_datasets(settings))
    spaced(outside / "tokenizer.json")
    changed = differences(identity, run_identity(settings, base, open_datasets(settings))[0])
    assert changed == [f"model.base: changed {outside.name}/tokenizer.json"]


def test_the_state_of_a_checkpoint_stays_small(site: Site) -> None:
    files = read_json(site.root / "run/checkpoint-2/state.json")["identity"]["dataset_files"]
    assert {"data", "videos", "meta/info.json"} < set(files) and len(files) < 12
    assert f"dataset_files.{VIDEO}" in read_json(site.root / "run/inputs.json")


def test_a_large_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.training.run_identity.LARGE_BYTES", 4)
    large, memory = tmp_path / "weights", tmp_path / "cache" / "digests.json"
    large.write_bytes(b"weights")

    def digest() -> str:
        digests = Digests(memory)
        found = digests(large)
        digests.keep()
        return found

    before = digest()
    with monkeypatch.context() as patch:
        patch.setattr("finetune.training.run_identity.file_sha256", None)
        assert digest() == before == file_sha256(large)
    flip(large)
    assert digest() != before


# -- the robot ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, line",
    [
        (lambda path: absolute_arm(path), "action.arm.rep: 'RELATIVE' there, 'ABSOLUTE' now"),
        (
            lambda path: robot_file(path, state={"mean_std_embedding_keys": ["arm"]}),
            "state.mean_std_embedding_keys: No",
        ),
        (lambda path: robot_file(path, video={"modality_keys": ["wrist_image", "image"]}), "video.modality_keys: ["),
    ],
)
def test_another_robot_is_refused_by_group_and_field(change: Any, line: str, site: Site, tmp_path: Path) -> None:
    given = f"dataset.modality_config={change(tmp_path / 'robot.py')}"
    assert f"\n  modality_config.{line}" in site.refusal(given)
    message = site.refusal(given, f"run_dir={tmp_path}/gone")
    assert "output_dir" in message and f"\n  modality_config.{line}" in message


def test_the_robot_lies_in_everything_that_a_run_writes(site: Site) -> None:
    done = site.root / "done"
    written = read_yaml(done / "experiment_cfg/config.yaml")["dataset"]
    assert written["modalities"] == read_json(site.root / "run/run_config.json")["dataset"]["modalities"]
    assert written["modalities"]["action"]["action_configs"][0]["rep"] == "RELATIVE"
    assert read_json(done / RELEASE_MARK)["made_of"]["modality_config"]["action"]["arm"]["rep"] == "RELATIVE"


def test_a_checkpoint_says_by_which_recipe_and_seed_it_was_trained(site: Site) -> None:
    found, mark = trained_by(site.root / "done"), read_json(site.root / "done" / RELEASE_MARK)
    assert found["recipe"] | {"train.seed": found["training_seed"]} == mark["made_of"]
    assert found["training_step"] == mark["step"] == 2 and "train.seed" not in found["recipe"]
    assert trained_by(site.root / "base") == {}


def test_a_robots_file_is_read_once_and_its_place_is_not_published(own: Site, tmp_path: Path) -> None:
    file = robot_file(tmp_path / "my_robot.py")
    file.write_text(file.read_text() + f"open({str(tmp_path / 'read')!r}, 'a').write('.')\n")
    folders = (f"run_dir={tmp_path}/run", f"output_dir={tmp_path}/done", "train.eval_steps=1", "train.eval_episodes=1")
    finetune(own.config(f"dataset.modality_config={file}", *folders, "train.max_steps=1"))
    assert (tmp_path / "read").read_text() == "."
    written = (tmp_path / "done/experiment_cfg/config.yaml").read_text()
    assert "modality_config: my_robot.py\n" in written and str(tmp_path) not in written


# -- configuration keys ------------------------------------------------------------------------------------------------


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not isinstance(value, Mapping):
        yield path
        return
    for name, inner in value.items():
        yield from leaves(inner, (*path, name))


def test_every_key_of_the_recipe_is_refused_by_name(site: Site) -> None:
    own = recipe(dataclasses.asdict(site.config()))
    for *parents, last in leaves(own):
        other = copy.deepcopy(own)
        holder = other
        for part in parents:
            holder = holder[part]
        was, holder[last] = holder[last], "other"
        assert differences(own, other) == [f"{'.'.join([*parents, last])}: {was!r} there, 'other' now"]


def test_a_key_that_comes_later_says_what_runs_acted_as_before() -> None:
    default = {"train": dataclasses.asdict(TrainConfig()), "augment": dataclasses.asdict(AugmentConfig())}
    keys = set(flat(recipe({**default, "dataset": {"tail": "mask", "embodiment_tag": "new_embodiment"}})))
    undeclared = keys - FIRST - set(befores())
    assert not undeclared, f"declare key(..., before=VALUE), or identity=False: {undeclared}"
    assert set(befores()) <= keys | set(ENTRIES) and not FIRST & set(befores())


def test_todays_default_is_not_what_an_old_run_acted_as(monkeypatch: pytest.MonkeyPatch) -> None:
    old = {"train.seed": 1, "train.tune": {"llm": False}, "augment": {"color_jitter": None}}
    before = completed(old)
    assert (before["train.noise_draws"], before["train.tune.all_embodiments"], before["train.lora.rank"]) == (
        1,
        True,
        None,
    )
    monkeypatch.setattr(TrainConfig.__dataclass_fields__["noise_draws"], "default", 4)
    assert TrainConfig.__dataclass_fields__["noise_draws"].default == 4 and completed(old) == before


def test_a_key_below_a_section_that_was_off_is_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENTRIES, "augment.color_jitter.gamma", 1.0)
    old = {"augment": {"color_jitter": None, "views": 2}}
    assert differences(old, {"augment": {"color_jitter": None, "views": 2}}) == []
    assert differences(old, {"augment": {"color_jitter": None, "views": 3}}) == ["augment.views: 2 there, 3 now"]


def test_an_entry_that_is_no_key_has_its_value_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENTRIES, "order", "shuffled")
    assert differences({}, {"order": "sorted"}) == ["order: 'shuffled' there, 'sorted' now"]
    assert differences({}, {"order": "shuffled"}) == []


# -- runs of before ----------------------------------------------------------------------------------------------------


def age(site: Site) -> Site:
    """Make the run as it was written before the modality configuration was part of its identity."""
    run, done = site.root / "run", site.root / "done"
    (run / "inputs.json").unlink()
    unknown = {name for name, was in ENTRIES.items() if was is UNKNOWN}
    for state in run.glob("*/state.json"):
        found = read_json(state)
        del found["conditions"]
        found["identity"] = {name: value for name, value in found["identity"].items() if name not in unknown}
        write_json(state, found)
        manifest = state.with_name("manifest.json")
        write_json(manifest, {**read_json(manifest), "state.json": file_sha256(state)})
    write_json(done / RELEASE_MARK, {"identity": identity_digest(found["identity"]), "step": 2})
    settings = done / "experiment_cfg" / "config.yaml"
    settings.write_text(settings.read_text().replace("  modalities:", "  was_not_there:"))
    return site


@pytest.fixture
def old(own: Site) -> Site:
    return age(own)


def test_a_checkpoint_of_before_does_not_say_its_recipe(old: Site) -> None:
    assert trained_by(old.root / "done") == {}


def test_an_old_finished_run_is_still_finished(old: Site, tmp_path: Path) -> None:
    assert old.start()[1] and old.start(f"run_dir={tmp_path}/gone") == (None, True)


def test_an_old_finished_run_is_not_taken_for_another_robots(old: Site, tmp_path: Path) -> None:
    other = f"dataset.modality_config={absolute_arm(tmp_path / 'robot.py')}"
    line = "modality_config.action.arm.rep: 'RELATIVE' there, 'ABSOLUTE' now"
    assert line in old.refusal(other) and "checkpoint-2 belongs to" in old.refusal(other)
    message = old.refusal(other, f"run_dir={tmp_path}/gone")
    assert line in message and "output_dir" in message


def test_an_old_finished_run_says_what_else_differs(old: Site, tmp_path: Path) -> None:
    gone = f"run_dir={tmp_path}/gone"
    assert "train.learning_rate: 0.001 there, 0.002 now" in old.refusal(gone, "train.learning_rate=2e-3")
    assert "augment.views: None there, 3 now" in old.refusal(gone, "augment.views=3")
    best = ("train.export=best", "train.eval_steps=1")
    assert "train.export: 'last' there, 'best' now" in old.refusal(gone, *best)
    spaced(old.root / TRAIN / "meta/stats.json")
    assert "the dataset or model.base holds other content" in old.refusal(gone)


def test_an_old_run_without_its_result_asks_for_the_robot_and_takes_it(old: Site, tmp_path: Path) -> None:
    shutil.rmtree(old.root / "done")
    assert "dataset.modality_config=conflict_panda_config.py" in old.refusal()
    same = f"dataset.modality_config={robot_file(tmp_path / 'robot.py')}"
    start, finished = old.start(same)
    assert start is not None and start.step == 2 and not finished
    shutil.rmtree(old.root / "run/checkpoint-2")
    finetune(old.config(same))
    assert newest_checkpoint(old.root / "run").state["identity"]["modality_config"]  # type: ignore[union-attr]
    assert old.start()[1]


@pytest.mark.parametrize("written", ["now", "before"])
def test_the_launcher_tells_a_finished_run_from_another_robots(written: str, own: Site, tmp_path: Path) -> None:
    site = own if written == "now" else age(own)
    assert is_finished(site.config())
    with pytest.raises(ToolkitError, match=r"modality_config\.action\.arm\.rep: 'RELATIVE' there, 'ABSOLUTE' now"):
        is_finished(site.config(f"dataset.modality_config={absolute_arm(tmp_path / 'robot.py')}"))


def test_a_training_that_ended_is_finished_whatever_its_dataset_is_called(own: Site) -> None:
    (own.root / "elsewhere").mkdir()
    (own.root / "data").rename(own.root / "elsewhere/all")
    other = f"dataset.data_dir={own.root}/elsewhere/all"
    never = own.config("train.resume=never", other)
    assert not is_finished(never) and is_finished(never, ended=True)
    task: Any = SimpleNamespace(stage="finetune", config=never, after=[])
    assert found_result(task) is None and left_result(task)
    assert not is_finished(own.config(other)) and is_finished(own.config(other), ended=True)
    with pytest.raises(ToolkitError, match=r"train\.learning_rate"):
        is_finished(own.config(other, "train.learning_rate=2e-3"), ended=True)
    (own.root / "done" / RELEASE_MARK).unlink()
    assert not is_finished(own.config(other), ended=True)


# -- conditions --------------------------------------------------------------------------------------------------------


def test_conditions_lie_in_run_checkpoint_and_result(site: Site) -> None:
    found = read_json(site.root / "done/experiment_cfg/conditions.json")
    assert found == read_json(site.root / "run/checkpoint-2/state.json")["conditions"]
    lines = (site.root / "run/conditions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"from_step": 0, **found}]
    assert {"torch", "transformers", "numpy", "av", "opencv"} <= set(found["packages"])
    assert {"finetune.training.train", "gr00t.model.dit"} <= set(found["code"]) and found["hardware"]["device"] == "cpu"


def test_another_way_to_compute_is_warned_about_and_continues(
    own: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(own.root / "run/checkpoint-2")
    shutil.rmtree(own.root / "done")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    real = conditions._code
    monkeypatch.setattr(conditions, "_code", lambda: {**real(), "gr00t.model.dit": "edited"})
    assert finetune(own.config("train.micro_batch_size=2")).steps == 2
    said = [record.getMessage() for record in caplog.records if "is resumed, but" in record.getMessage()]
    assert said == [
        "checkpoint-1 is resumed, but micro_batch_size 4 there, 2 now: dropout is drawn for each micro-batch, so "
        "losses differ where there is any",
        "checkpoint-1 is resumed, but MKL_CBWR none there, COMPATIBLE now: losses may differ by rounding",
        "checkpoint-1 is resumed, but the code of gr00t.model.dit has changed since: losses may differ",
    ]
    lines = [json.loads(line) for line in (own.root / "run/conditions.jsonl").read_text().splitlines()]
    assert [line["from_step"] for line in lines] == [0, 1]
    assert lines[1]["environment"] == {**lines[0]["environment"], "MKL_CBWR": "COMPATIBLE"}


def test_versions_and_processors_are_compared() -> None:
    def of(torch: str, processor: str) -> Mapping[str, Any]:
        return {"packages": {"torch": torch}, "hardware": {"processor": processor}, "code": {}}

    assert conditions.changes(of("2.13.0", "x86_64 AVX512"), of("2.12.0", "x86_64 AVX2")) == [
        "processor x86_64 AVX512 there, x86_64 AVX2 now: losses may differ by rounding",
        "torch 2.13.0 there, 2.12.0 now: losses may differ by rounding",
    ]
    assert conditions.changes({}, of("2.12.0", "x")) == []


def test_variables_are_taken_by_name_and_never_secrets_or_paths() -> None:
    kept = {"NVIDIA_TF32_OVERRIDE": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    kept |= {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_MAX_AUTOTUNE": "1"}
    left = {"HF_TOKEN": "x", "MKL_API_KEY": "x", "TORCHINDUCTOR_CACHE_DIR": "/home/me/x", "HOME": "/home/me"}
    left |= {"WANDB_API_KEY": "x", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "XMKL_A": "1"}
    assert conditions._environment({**kept, **left}) == dict(sorted(kept.items()))


def with_a_longer_instruction(data: Path) -> None:
    """In the last training episode."""
    train = data / "color_object" / "train"
    number = json.loads((train / "meta" / "split.json").read_text())["val_episodes"]
    episode = max(set(range(5)) - set(number))
    tasks = train / "meta" / "tasks.jsonl"
    tasks.write_text(
        tasks.read_text() + json.dumps({"task_index": 7, "task": "pick up the object like the plate"}) + "\n"
    )
    path = train / "data" / "chunk-000" / f"episode_{episode:06d}.parquet"
    table = pq.read_table(path)
    for name in ("annotation.human.task_description", "task_index"):
        place = table.column_names.index(name)
        column = table.column(name)
        table = table.set_column(place, name, [[7] * len(column)])
    pq.write_table(table, path)


def test_a_run_whose_prompts_were_padded_is_not_continued_by_a_version_without_the_leak(own: Site) -> None:
    settings, base = own.config(), own.root / "base"
    assert "padding" not in run_identity(settings, base, open_datasets(settings))[0]
    with_a_longer_instruction(own.root / "data")
    found = run_identity(settings, base, open_datasets(settings))[0]
    before = {name: value for name, value in found.items() if name != "padding"}
    (line,) = differences(before, found)
    assert line.startswith("padding: instructions of several lengths were padded") and differences(found, found) == []
    shape = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**shape, "vl_self_attention_cfg": None}))
    assert "padding" not in run_identity(settings, base, open_datasets(settings))[0]  # nothing attended to it there
