"""The rig for real checkpoints, tried on the golden files: what agrees passes, what does not fails and says where."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_files import Arrays, below, checkpoint_of, golden_path, infer_files, load
from parity import produce_original as producer
from parity.consumer import Mismatch, Rig, check_model, check_preprocessor, load_model

from gr00t.data.images import pixel_values
from gr00t.data.processor import Gr00tN1d7Processor, Step
from gr00t.model.gr00t_n1d7 import Gr00tN1d7

ROOT = Path(__file__).resolve().parents[1]
TAG = "new_embodiment"
CHECKPOINT = golden_path("tiny_h40")
RIG = Rig(checkpoint=CHECKPOINT)
CONFIGS, STATISTICS = producer.read_metadata(CHECKPOINT)


class StandIn:
    """The three calls of producer.Original, answered by this project."""

    def __init__(self, model: Gr00tN1d7, processor: Gr00tN1d7Processor) -> None:
        self.model, self.processor = model, processor

    def encode(self, observations: list[dict], tag: str) -> dict:
        samples = [self.processor.encode(Step(o["video"], o["state"], o["language"]), tag) for o in observations]
        batch = self.processor.collate(samples)
        inputs = {name: value.numpy() for name, value in batch.items() if name != "images"}
        inputs["pixel_values"] = pixel_values(batch["images"]).numpy()
        return {
            "texts": [sample["text"] for sample in samples],
            "images": [sample["images"] for sample in samples],
            "inputs": inputs,
            "collated": batch,
        }

    def act(self, encoded: dict, seed: int) -> tuple[np.ndarray, np.ndarray]:
        torch.manual_seed(seed)
        actions = self.model.get_action(encoded["collated"])
        torch.manual_seed(seed)
        return torch.randn(actions.shape).numpy(), actions.numpy()

    def decode(self, action_pred: np.ndarray, tag: str, states: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.processor.decode_action(action_pred, tag, states)


@pytest.fixture(scope="module")
def model() -> Gr00tN1d7:
    return load_model(CHECKPOINT, "cpu")


@pytest.fixture(scope="module")
def processor() -> Gr00tN1d7Processor:
    return Gr00tN1d7Processor.from_pretrained(CHECKPOINT)


@pytest.fixture
def recorded() -> Arrays:
    return load(golden_path(f"infer_tiny_h40__{TAG}.npz"))


def saved(folder: Path, arrays: Arrays, tag: str = TAG) -> Path:
    path = folder / f"infer_tiny_h40__{tag}.npz"
    producer.write(path, arrays)
    return path


# the consumer


@pytest.mark.parametrize("path", infer_files(), ids=lambda path: path.stem)
def test_every_golden_file_is_a_recording_that_passes(path: Path) -> None:
    rig = Rig(checkpoint=checkpoint_of(path), atol=1e-5, rtol=0)
    assert check_model(path, load_model(checkpoint_of(path), "cpu"), rig) < 5e-6
    differences = check_preprocessor(path, Gr00tN1d7Processor.from_pretrained(checkpoint_of(path)), rig)
    assert differences["pixels"] == differences["state"] == 0


def changed(data: Arrays, name: str, value: np.ndarray | None) -> Arrays:
    return {k: v for k, v in {**data, name: value}.items() if v is not None}


def one_at(array: np.ndarray, *place: int) -> np.ndarray:
    ones = np.zeros_like(array)
    ones[place] = 1
    return ones


MODEL_CASES = {
    "action_pred is off": (
        "action_pred",
        lambda a: a + np.float32(5e-3) * (np.abs(a) > 1),
        "action_pred: .* differ by",
    ),
    "one value is off": ("action_pred", lambda a: a + one_at(a, 1, 2, 7), r"1 of 10560 values.* at \(1, 2, 7\) found"),
    "not a number": ("action_pred", lambda a: a * np.float32("nan"), "recorded nan"),
    "another horizon": ("action_pred", lambda a: a[:, :16], r"\(2, 16, 132\).*says \(2, 40, 132\): horizon or dim"),
    "another dimension": ("action_pred", lambda a: a[..., :29], r"\(2, 40, 29\).*says \(2, 40, 132\)"),
    "another seed": ("seed", lambda seed: seed + 1, "values differ"),
    "no seed": ("seed", lambda _: None, "lacks seed: record it again"),
    "no ids": ("in::input_ids", lambda _: None, "lacks in::input_ids"),
    "no images": ("img::0", lambda _: None, "lacks in::pixel_values"),
}


@pytest.mark.parametrize("case", MODEL_CASES)
def test_a_recording_that_differs_from_the_model_fails_and_says_where(
    case: str, recorded: Arrays, model: Gr00tN1d7, tmp_path: Path
) -> None:
    name, change, said = MODEL_CASES[case]
    recorded.pop("mid::noise")
    path = saved(tmp_path, changed(recorded, name, change(recorded[name])))
    with pytest.raises(Mismatch, match=said):
        check_model(path, model, RIG)


PREPROCESSOR_CASES = {
    "another prompt": ("text::1", lambda text: np.char.replace(text, "drawer", "door"), "prompt 1 is .*drawer.*door"),
    "another id": ("in::input_ids", lambda ids: ids + one_at(ids, 0, 149), "input_ids: 1 of 300"),
    "a longer prompt": ("in::input_ids", lambda ids: np.pad(ids, ((0, 0), (1, 0))), r"shape \(2, 150\), recorded was"),
    "one level of one pixel": ("img::0", lambda image: image ^ one_at(image, 1, 2, 3, 0), "pixel_values: 2 of"),
    "another state": ("in::state", lambda state: state + 0.01, "state: 264 of 264"),
    "another embodiment": ("in::embodiment_id", lambda ids: ids + 1, "embodiment_id: 2 of 2"),
    "another action": ("decoded::arm", lambda arm: arm + 0.1, "decoded arm: "),
    "no observation": ("raw::0::language", lambda _: None, "lacks raw::0::language"),
}


@pytest.mark.parametrize("case", PREPROCESSOR_CASES)
def test_a_recording_that_differs_from_the_preprocessor_fails_and_says_where(
    case: str, recorded: Arrays, processor: Gr00tN1d7Processor, tmp_path: Path
) -> None:
    name, change, said = PREPROCESSOR_CASES[case]
    path = saved(tmp_path, changed(recorded, name, change(recorded[name])))
    with pytest.raises(Mismatch, match=said):
        check_preprocessor(path, processor, RIG)


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("precision", "bfloat16", "precision is 'bfloat16', needed is 'float32'"),
        ("attention", "flash_attention_2", "needed is 'sdpa'"),
        ("tag", "libero_sim", "needed is 'new_embodiment'"),
        ("format", 0, "format is 0"),
        ("fingerprint", {"config.json": "other"}, "another checkpoint than .*tiny_h40: config.json differs"),
    ],
)
def test_a_recording_made_otherwise_is_refused(
    key: str, value: object, said: str, recorded: Arrays, model: Gr00tN1d7, tmp_path: Path
) -> None:
    meta = producer.describe(CHECKPOINT, TAG, "cpu")
    check_model(saved(tmp_path, {**recorded, "meta": np.array(json.dumps(meta))}), model, RIG)
    path = saved(tmp_path, {**recorded, "meta": np.array(json.dumps({**meta, key: value}))})
    with pytest.raises(Mismatch, match=said):
        check_model(path, model, RIG)


def test_noise_recorded_on_another_device_takes_the_seeds_place(
    recorded: Arrays, model: Gr00tN1d7, tmp_path: Path
) -> None:
    check_model(saved(tmp_path, {**recorded, "seed": recorded["seed"] + 1}), model, RIG)


def test_the_knobs_are_read_from_the_environment() -> None:
    assert Rig.from_env({}) == Rig(None, None, "cpu", 1e-3, 1e-3)
    names = ("N1_7_PARITY_DIR", "N1_7_LIBERO_CKPT", "PARITY_DEVICE", "PARITY_ATOL", "PARITY_RTOL")
    given = dict(zip([f"GROOT_{name}" for name in names], ["a", "b", "cuda", "1e-4", "0"], strict=True))
    assert Rig.from_env(given) == Rig(Path("a"), Path("b"), "cuda", 1e-4, 0.0)


def test_what_is_missing_is_said_with_the_command_that_makes_it(tmp_path: Path) -> None:
    rig = Rig(directory=tmp_path, checkpoint=CHECKPOINT)
    assert "GROOT_N1_7_LIBERO_CKPT is not set" in str(replace(rig, checkpoint=None).missing())
    assert "is no checkpoint folder" in str(replace(rig, checkpoint=tmp_path).missing())
    assert "GROOT_N1_7_PARITY_DIR is not set" in str(replace(rig, directory=None).missing())
    said = str(rig.missing())
    assert f"produce_original.py --checkpoint {CHECKPOINT} --out {tmp_path}" in said
    saved(tmp_path, {"seed": np.array(1)})
    assert rig.missing() is None


def test_without_recordings_the_cases_are_skipped_with_that_command(tmp_path: Path) -> None:
    environment = {**os.environ, "GROOT_N1_7_PARITY_DIR": str(tmp_path), "GROOT_N1_7_LIBERO_CKPT": str(CHECKPOINT)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/parity"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "ss" in done.stdout
    assert f"produce_original.py --checkpoint {CHECKPOINT} --out {tmp_path}" in done.stdout


def test_every_test_that_docs_parity_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "parity.md").read_text()))
    defined = {n for f in (ROOT / "tests").rglob("test_*.py") for n in re.findall(r"def (test_\w+)", f.read_text())}
    files = {f.stem for f in (ROOT / "tests").rglob("test_*.py")}
    assert len(named) > 20 and named <= defined | files, sorted(named - defined - files)


# the producer


@pytest.mark.parametrize("tag", CONFIGS)
def test_what_the_producer_records_of_any_embodiment_passes_the_consumer(
    tag: str, model: Gr00tN1d7, processor: Gr00tN1d7Processor, tmp_path: Path
) -> None:
    observations = producer.build_batch(CONFIGS[tag], STATISTICS[tag], seed=7, count=2 if tag == TAG else 1)
    meta = producer.describe(CHECKPOINT, tag, "cpu")
    arrays = producer.record(StandIn(model, processor), observations, tag, 7, meta)
    path = saved(tmp_path, arrays, tag)
    assert check_model(path, model, RIG) == 0
    differences = check_preprocessor(path, processor, RIG)
    assert set(differences) == {"pixels", "state"} | {f"decoded {k}" for k in CONFIGS[tag]["action"]["modality_keys"]}
    assert not any(differences.values())


@pytest.mark.parametrize("tag", CONFIGS)
def test_observations_follow_the_metadata_and_the_seed(tag: str) -> None:
    first, second = producer.build_batch(CONFIGS[tag], STATISTICS[tag], seed=3, count=2)
    again = producer.build_batch(CONFIGS[tag], STATISTICS[tag], seed=3, count=1)[0]
    assert first["language"] != second["language"]
    assert list(first["video"]) == CONFIGS[tag]["video"]["modality_keys"]
    for view, frames in first["video"].items():
        assert frames.dtype == np.uint8 and len(frames) == len(CONFIGS[tag]["video"]["delta_indices"])
        assert frames.std() > 30 and np.array_equal(frames, again["video"][view])
        assert not np.array_equal(frames, second["video"][view])
    for group, values in first["state"].items():
        table = STATISTICS[tag]["state"][group]
        assert values.dtype == np.float32 and np.array_equal(values, again["state"][group])
        assert (values >= np.float32(table["min"]) - 1e-6).all() and (values <= np.float32(table["max"]) + 1e-6).all()


def test_a_pose_without_direction_gets_no_turn() -> None:
    still = {"q01": [0.0] * 9, "q99": [0.0] * 9}
    values = producer.state_values(still, 2, np.random.default_rng(0), rot6d=True)
    assert values.tolist() == [[0, 0, 0, 1, 0, 0, 0, 1, 0]] * 2


def test_a_file_is_written_whole_and_without_pickles(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="raw::0::language is no plain array"):
        producer.write(tmp_path / "a__b.npz", {"raw::0::language": np.array(["x"], dtype=object)})
    saved(tmp_path, {"seed": np.array(1)})
    assert [p.name for p in tmp_path.iterdir()] == [f"infer_tiny_h40__{TAG}.npz"]


def test_versions_and_checkpoint_are_recorded() -> None:
    meta = producer.describe(CHECKPOINT, TAG, "cpu")
    assert meta["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert set(meta["fingerprint"]) == {*producer.JSONS, "model.safetensors"}


@pytest.mark.parametrize("path", ["", str(ROOT)], ids=["no gr00t", "this project's gr00t"])
def test_outside_the_originals_environment_the_producer_says_what_it_needs(path: str, tmp_path: Path) -> None:
    # -I would keep PYTHONPATH out; -P keeps the script's folder, and with it this project, out
    command = [sys.executable, "-P", producer.__file__, "--checkpoint", str(CHECKPOINT), "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "NVIDIA's package gr00t is needed" in done.stderr
    assert not list(tmp_path.iterdir())


STUB_PACKAGES = {
    "gr00t/__init__.py": "",
    "gr00t/data/__init__.py": "",
    "gr00t/data/embodiment_tags.py": "",
    # as in the original, the model type is known only once gr00t.model has been imported
    "gr00t/model/__init__.py": "import transformers; transformers.KNOWN.add('Gr00tN1d7')",
    "torch.py": """
        from types import SimpleNamespace as Namespace
        float32 = "float32"
        backends = Namespace(cuda=Namespace(matmul=Namespace()), cudnn=Namespace())
    """,
    "transformers.py": """
        import json, pathlib
        from types import SimpleNamespace as Namespace

        KNOWN = set()

        class AutoConfig:
            @staticmethod
            def from_pretrained(folder):
                model_type = json.loads((pathlib.Path(folder) / "config.json").read_text())["model_type"]
                if model_type not in KNOWN:
                    raise KeyError(model_type)
                return Namespace()

        class Loaded:
            from_pretrained = classmethod(lambda cls, *_, **__: cls())
            eval = to = lambda self, **_: self

        AutoModel = AutoProcessor = Loaded
    """,
}


def test_the_producer_registers_the_originals_model_before_it_reads_the_config(tmp_path: Path) -> None:
    for name, code in STUB_PACKAGES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(code))
    folder = tmp_path / "checkpoint"  # without statistics of any robot: the original is loaded, nothing is recorded
    folder.mkdir()
    (folder / "config.json").write_bytes((CHECKPOINT / "config.json").read_bytes())
    (folder / "processor_config.json").write_text('{"processor_kwargs": {"modality_configs": {}}}')
    (folder / "statistics.json").write_text("{}")
    command = [sys.executable, "-P", producer.__file__, "--checkpoint", str(folder), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_producer_imports_nothing_of_this_project() -> None:
    code = "import sys; sys.path.insert(0, 'tests/parity'); import produce_original; print([m for m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not any(f"'{name}" in done.stdout for name in ("gr00t", "finetune", "golden_files", "torch"))


def test_states_and_images_of_a_recording_are_those_the_golden_files_have(recorded: Arrays) -> None:
    built = producer.build_observation(CONFIGS[TAG], STATISTICS[TAG], np.random.default_rng(0), "Open it.")
    assert list(built["state"]) == list(below(recorded, "raw::0::state::"))
    assert {k: v.shape for k, v in built["state"].items()} == {
        k: v.shape for k, v in below(recorded, "raw::0::state::").items()
    }
