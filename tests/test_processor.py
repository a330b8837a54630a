import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_files import (
    batch_images,
    batch_size,
    below,
    checkpoint_of,
    golden_path,
    infer_files,
    load,
    tag_of,
    train_files,
)

from conflict_panda_config import MODALITY_CONFIG
from gr00t.data.images import Augmentation, pixel_values
from gr00t.data.processor import Gr00tN1d7Processor, Step
from gr00t.data.processor_files import default_projector_index
from gr00t.data.schema import EmbodimentTag, ModalityConfig
from gr00t.errors import ToolkitError

TAG = "new_embodiment"
JSONS = ("processor_config.json", "statistics.json", "embodiment_id.json")
_LOADED: dict[Path, Gr00tN1d7Processor] = {}


def load_processor(checkpoint: Path) -> Gr00tN1d7Processor:
    if checkpoint not in _LOADED:
        _LOADED[checkpoint] = Gr00tN1d7Processor.from_pretrained(checkpoint)
    return _LOADED[checkpoint]


@pytest.fixture(scope="module")
def processor() -> Gr00tN1d7Processor:
    return load_processor(golden_path("tiny_h40"))


@pytest.fixture(scope="module")
def panda(processor) -> Gr00tN1d7Processor:
    statistics = json.loads(golden_path("dataset_merged_statistics.json").read_text())[TAG]
    return processor.with_embodiment(TAG, MODALITY_CONFIG, statistics)


@pytest.fixture
def step() -> Step:
    points = load(golden_path("dataset_points.npz"))
    return Step(
        images={key: image[None] for key, image in below(points, "7::image::").items()},
        states=below(points, "7::state::"),
        text=str(points["7::text"]),
        actions=below(points, "7::action::"),
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    """A checkpoint of which a test may spoil something (weights aside)."""
    for name in ("tiny_h40", "Qwen"):
        shutil.copytree(golden_path(name), tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "tiny_h40"


def golden_pixel_values(images: np.ndarray) -> np.ndarray:
    """The image processor's result by its definition, patch by patch."""
    out = []
    for image in (images.astype(np.float32) - np.float32(127.5)) / np.float32(127.5):
        rows, columns = image.shape[0] // 32, image.shape[1] // 32
        for block in range(rows * columns):
            for patch in range(4):
                y, x = (block // columns * 2 + patch // 2) * 16, (block % columns * 2 + patch % 2) * 16
                channels_first = image[y : y + 16, x : x + 16].transpose(2, 0, 1)
                out.append(np.repeat(channels_first[:, None], 2, axis=1).ravel())
    return np.stack(out)


@pytest.mark.parametrize("path", infer_files(), ids=lambda p: p.stem)
def test_the_inputs_of_the_model_are_the_originals(path):
    data, processor = load(path), load_processor(checkpoint_of(path))
    samples = []
    for b in range(batch_size(data)):
        raw = below(data, f"raw::{b}::")
        step = Step(below(raw, "video::"), below(raw, "state::"), str(raw["language"]))
        samples.append(processor.encode(step, tag_of(path)))
        assert samples[-1]["text"] == str(data[f"text::{b}"])
        assert np.array_equal(samples[-1]["images"], data[f"img::{b}"])
    batch = processor.collate(samples)
    np.testing.assert_allclose(batch["state"], data["in::state"], rtol=0, atol=3e-7)  # closer: test_state_action
    for key in ("input_ids", "attention_mask", "image_grid_thw", "embodiment_id"):
        assert batch[key].dtype == torch.from_numpy(data[f"in::{key}"]).dtype
        assert np.array_equal(batch[key], data[f"in::{key}"]), key
    assert batch["images"].dtype == torch.uint8
    pixels = pixel_values(batch["images"]).numpy()
    assert np.array_equal(pixels, data.get("in::pixel_values", golden_pixel_values(batch["images"].numpy())))
    states = [below(data, f"raw::{b}::state::") for b in range(batch_size(data))]
    stacked = {key: np.stack([s[key] for s in states]) for key in states[0]}
    decoded = processor.decode_action(torch.from_numpy(data["action_pred"]), tag_of(path), stacked)
    for key, values in below(data, "decoded::").items():
        np.testing.assert_allclose(decoded[key], values, rtol=0, atol=1e-6)  # closer: test_state_action


@pytest.mark.parametrize("path", train_files(), ids=lambda p: p.stem)
def test_the_mixed_training_batch_is_the_originals(path):
    data, processor = load(path), load_processor(checkpoint_of(path))
    recorded, samples, first = batch_images(data), [], 0
    for i in range(batch_size(data)):
        raw = below(data, f"raw::{i}::")
        tag = str(raw["tag"])
        config = processor.modality_config(tag)["video"]
        frames, views = len(config.delta_indices), len(config.modality_keys)
        blank = {view: np.zeros((frames, 256, 256, 3), np.uint8) for view in config.modality_keys}
        sample = processor.encode(Step(blank, below(raw, "state::"), str(raw["language"]), below(raw, "action::")), tag)
        sample["images"] = recorded[first : first + frames * views]  # recorded after the transform only
        first += frames * views
        samples.append(sample)
    batch = processor.collate(samples)
    np.testing.assert_allclose(batch["state"], data["in::state"], rtol=0, atol=3e-7)
    for key in ("input_ids", "attention_mask", "image_grid_thw", "embodiment_id", "action_mask"):
        assert np.array_equal(batch[key], data[f"in::{key}"]), key
    assert np.array_equal(batch["images"], recorded)
    np.testing.assert_allclose(batch["action"], data["in::action"], rtol=0, atol=1e-5)  # exactly: test_state_action
    assert batch["action"].dtype == batch["action_mask"].dtype == torch.float32


def test_a_dataset_point_with_its_video_frames_is_the_originals(panda, step):
    points = load(golden_path("dataset_points.npz"))
    sample = panda.encode(step, TAG)
    assert np.array_equal(sample["images"], points["7::eval_img"])
    assert sample["text"] == str(points["7::chat"])
    for key in ("state", "action", "action_mask"):
        assert np.array_equal(sample[key], points[f"7::out::{key}"])


def test_pixel_values_can_be_cast_and_refuse_other_sides():
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    exact = pixel_values(images)
    assert np.array_equal(exact, golden_pixel_values(images.numpy()))
    assert torch.equal(pixel_values(images, torch.bfloat16), exact.to(torch.bfloat16))
    with pytest.raises(ValueError, match="multiples of 32"):
        pixel_values(images[:, :60])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pixel_values_are_the_same_on_the_gpu():
    images = torch.arange(256, dtype=torch.uint8).repeat(12 * 32)[: 32 * 32 * 3].reshape(1, 32, 32, 3)
    assert torch.equal(pixel_values(images.cuda()).cpu(), pixel_values(images))


def test_one_draw_is_replayed_over_all_frames_and_views(panda, step):
    frame = step.images["image"]
    step.images = {"image": frame, "wrist_image": frame.copy()}
    augmentation = panda.images.draw(np.random.default_rng(0))
    images = panda.encode(step, TAG, augmentation=augmentation)["images"]
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], panda.encode(step, TAG)["images"][0])


def test_views_of_other_shapes_are_padded_for_themselves(panda, step):
    step.images = {
        "image": np.full((1, 64, 64, 3), 255, np.uint8),
        "wrist_image": np.full((1, 48, 64, 3), 255, np.uint8),
    }
    square, wide = panda.encode(step, TAG, augmentation=Augmentation(6, 6))["images"]
    assert square.all()
    assert not wide[0].any() and not wide[-1].any() and wide[128].all()


def test_steps_past_the_end_are_zero_and_masked_whatever_stands_there(panda, step):
    whole = panda.encode(step, TAG)
    valid = np.arange(16) < 5
    assert step.actions is not None
    step.actions = {key: np.where(valid[:, None], a, np.nan).astype(np.float32) for key, a in step.actions.items()}
    step.action_valid = valid
    cut = panda.encode(step, TAG)
    assert np.array_equal(cut["action"][:5], whole["action"][:5])
    assert not cut["action"][5:].any() and not cut["action_mask"][5:].any()
    assert cut["action_mask"].sum() == 5 * 8 and cut["action_mask"].dtype == np.float32
    step.action_valid = np.zeros(16, bool)
    with pytest.raises(ToolkitError, match="at least one True"):
        panda.encode(step, TAG)


def test_a_dropped_or_excluded_state_is_zero(panda, step):
    assert panda.encode(step, TAG)["state"].any()
    assert not panda.encode(step, TAG, drop_state=True)["state"].any()
    assert not panda.with_config(exclude_state=True).encode(step, TAG)["state"].any()


def test_with_embodiment_leaves_the_source_alone(processor, panda):
    assert panda.modality_config(TAG)["action"] == MODALITY_CONFIG["action"]
    assert processor.modality_config(TAG)["action"] != MODALITY_CONFIG["action"]
    assert processor.files.statistics[TAG] != panda.files.statistics[TAG]
    assert set(panda.config.modality_configs) == set(processor.config.modality_configs)


def test_with_embodiment_refuses_what_the_checkpoint_cannot_hold(processor, panda):
    statistics = panda.files.statistics[TAG]
    absolute = MODALITY_CONFIG["action"].to_json() | {"delta_indices": list(range(41))}
    for config in absolute["action_configs"]:
        config["rep"] = "ABSOLUTE"
    long = MODALITY_CONFIG | {"action": ModalityConfig.from_json(absolute)}
    with pytest.raises(ToolkitError, match="horizon 41 is longer than the checkpoint's 40"):
        processor.with_embodiment(TAG, long, statistics)
    with pytest.raises(ToolkitError, match=r"action has 8 dimensions.*takes 7"):
        processor.with_config(max_action_dim=7).with_embodiment(TAG, MODALITY_CONFIG, statistics)
    with pytest.raises(ToolkitError, match=r'no group "arm"'):
        processor.with_embodiment(TAG, MODALITY_CONFIG, {"state": {}, "action": {}})
    with pytest.raises(ToolkitError, match="Unknown embodiment tag"):
        processor.with_embodiment("panda", MODALITY_CONFIG, statistics)


def test_embodiment_ids_of_the_checkpoint_win_and_the_rest_have_defaults(folder):
    (folder / "embodiment_id.json").write_text(json.dumps({TAG: 3}))
    ids = Gr00tN1d7Processor.from_pretrained(folder).embodiment_ids
    assert ids[TAG] == 3 and ids["libero_sim"] == 2 and set(ids) == {tag.value for tag in EmbodimentTag}
    released = json.loads((golden_path("tiny_h40") / "embodiment_id.json").read_text())
    assert {tag: default_projector_index(tag) for tag in released} == released


def test_saved_files_are_the_originals_and_stand_alone(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    for name in JSONS:
        original = json.loads((golden_path("tiny_h40") / name).read_text())
        for place in (tmp_path, tmp_path / "processor"):
            assert json.loads((place / name).read_text()) == original
    kwargs = json.loads((tmp_path / JSONS[0]).read_text())["processor_kwargs"]
    assert list(kwargs) == list(json.loads((golden_path("tiny_h40") / JSONS[0]).read_text())["processor_kwargs"])
    for name in JSONS:
        (tmp_path / name).unlink()  # processor/ alone is enough
    again = Gr00tN1d7Processor.from_pretrained(tmp_path)
    assert again.files == processor.files
    assert again.vlm.folder == tmp_path / "processor" / "vlm"


def test_settings_of_later_versions_are_kept(folder, tmp_path):
    document = json.loads((folder / JSONS[0]).read_text())
    document["processor_kwargs"]["from_the_future"] = {"a": [1, None]}
    (folder / JSONS[0]).write_text(json.dumps(document))
    Gr00tN1d7Processor.from_pretrained(folder).save_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / JSONS[0]).read_text()) == document


def test_transformers_auto_processor_finds_the_class(folder):
    from transformers import AutoProcessor

    assert type(AutoProcessor.from_pretrained(folder)) is Gr00tN1d7Processor


def test_importing_gr00t_data_loads_neither_torch_nor_transformers():
    code = "import sys, gr00t.data; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


def test_unknown_and_unprepared_embodiments_are_refused(folder, step):
    processor = Gr00tN1d7Processor.from_pretrained(folder)
    with pytest.raises(ToolkitError, match=r'does not know the embodiment "libero_sin".*mean "libero_sim"'):
        processor.encode(step, "libero_sin")
    statistics = json.loads((folder / "statistics.json").read_text())
    del statistics[TAG]
    (folder / "statistics.json").write_text(json.dumps(statistics))
    with pytest.raises(ToolkitError, match=r'statistics\.json has no entry for the embodiment "new_embodiment"'):
        Gr00tN1d7Processor.from_pretrained(folder).encode(step, TAG)


def test_bad_steps_are_refused(panda, step):
    good = step.images
    for images, message in (
        ({"image": good["image"]}, 'view "wrist_image" is missing'),
        (good | {"image": good["image"][0]}, r"expected 1 frame\(s\)"),
        (good | {"image": good["image"].repeat(2, axis=0)}, r"expected 1 frame\(s\)"),
        (good | {"image": good["image"] / 255.0}, "RGB uint8"),
    ):
        step.images = images
        with pytest.raises(ToolkitError, match=message):
            panda.encode(step, TAG)
    step.images, step.text = good, ["pick it up"]  # type: ignore[assignment]
    with pytest.raises(ToolkitError, match="must be one string, not list"):
        panda.encode(step, TAG)


def test_folders_that_are_no_n1_7_checkpoint_are_refused(folder, tmp_path):
    def refused(path: Path, message: str) -> None:
        with pytest.raises(ToolkitError, match=message):
            Gr00tN1d7Processor.from_pretrained(path)

    refused(tmp_path / "nowhere", "no such checkpoint folder.*hf download nvidia/GR00T-N1.7-3B")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"no processor_config\.json, neither here nor in processor/")
    (tmp_path / "empty" / "config.json").write_text(json.dumps({"model_type": "gr00t_n1_5"}))
    refused(tmp_path / "empty", r"is a GR00T N1\.5 checkpoint \(gr00t_n1_5\)")
    text = (folder / JSONS[0]).read_text()
    (folder / JSONS[0]).write_text(text.replace("Gr00tN1d7Processor", "Gr00tN1d6Processor"))
    refused(folder, 'processor_class is "Gr00tN1d6Processor".*start from N1.7')
    (folder / JSONS[0]).write_text(text[:-20])
    refused(folder, r"processor_config\.json: not valid JSON")
    (folder / JSONS[0]).write_text(text)
    (folder / JSONS[1]).unlink()
    refused(folder, r"statistics\.json cannot be read")


def test_a_missing_tokenizer_says_where_it_was_looked_for(folder, monkeypatch):
    monkeypatch.chdir(folder)
    vlm = shutil.move(folder.parent / "Qwen", folder.parent / "elsewhere")
    with pytest.raises(ToolkitError, match=r"Qwen3-VL-tiny.*processor/vlm.*hf download.*vlm_path"):
        Gr00tN1d7Processor.from_pretrained(folder)
    Gr00tN1d7Processor.from_pretrained(folder, vlm_path=Path(vlm) / "Qwen3-VL-tiny")


def test_a_checkpoint_of_the_torchvision_transform_is_read_with_opencv_and_says_so(folder, caplog):
    golden, text = load(golden_path("image_transforms.npz")), (folder / JSONS[0]).read_text()
    (folder / JSONS[0]).write_text(text.replace('"use_albumentations": true', '"use_albumentations": false'))
    images = Gr00tN1d7Processor.from_pretrained(folder).images
    assert "use_albumentations is off" in caplog.text
    square, wide = (images.eval(golden[f"{size}::raw"]).astype(int) for size in ("256x256", "180x320"))
    assert np.abs(square - golden["256x256::eval_torchvision"]).max() > 0
    assert square.shape == wide.shape == golden["180x320::eval_torchvision"].shape


def test_with_embodiment_keeps_the_checkpoints_projector(folder, panda):
    (folder / "embodiment_id.json").write_text(json.dumps({TAG: 3}))
    processor = Gr00tN1d7Processor.from_pretrained(folder)
    assert processor.with_embodiment(TAG, MODALITY_CONFIG, panda.files.statistics[TAG]).embodiment_ids[TAG] == 3


def test_a_robot_may_fill_the_checkpoint_to_its_limits(processor, panda):
    exact = processor.with_config(max_action_dim=8, max_state_dim=8, max_action_horizon=16)
    assert exact.with_embodiment(TAG, MODALITY_CONFIG, panda.files.statistics[TAG]).state_action.horizon(TAG) == 16
    for name in ("max_action_dim", "max_state_dim", "max_action_horizon"):
        tight = exact.with_config(**{name: getattr(exact.config, name) - 1})
        with pytest.raises(ToolkitError, match="checkpoint"):
            tight.with_embodiment(TAG, MODALITY_CONFIG, panda.files.statistics[TAG])


def test_images_run_over_views_within_each_frame(panda, step):
    video = ModalityConfig([-1, 0], ["image", "wrist_image"])
    configs = MODALITY_CONFIG | {"video": video}
    two = panda.with_embodiment(TAG, configs, panda.files.statistics[TAG])
    levels = {"image": (10, 20), "wrist_image": (30, 40)}
    step.images = {
        view: np.stack([np.full((64, 64, 3), level, np.uint8) for level in of_view]) for view, of_view in levels.items()
    }
    assert [int(image[128, 128, 0]) for image in two.encode(step, TAG)["images"]] == [10, 30, 20, 40]
