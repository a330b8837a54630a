import json
from itertools import pairwise

import numpy as np
import pytest
from golden_files import golden_path, load

from gr00t.data.images import JITTERS, Augmentation, ImageTransform, vlm_resize
from gr00t.errors import ToolkitError

JITTER = {"brightness": 0.3, "contrast": 0.4, "saturation": 0.5, "hue": 0.08}
SIZES = ("256x256", "180x320", "300x200", "97x131")
CONFIGS = {
    "eval_frac095": ImageTransform(shortest_image_edge=256, crop_fraction=0.95),
    "eval_230of256": ImageTransform(image_crop_size=[230, 230], image_target_size=[256, 256]),
}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return load(golden_path("image_transforms.npz"))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_eval_transform_is_the_originals_bit_for_bit(golden, size, name):
    assert np.array_equal(CONFIGS[name].eval(golden[f"{size}::raw"]), golden[f"{size}::{name}"])


def test_the_training_transform_is_the_originals_bit_for_bit(golden):
    drawn = json.loads(golden_path("image_transforms_train_params.json").read_text())[0]
    crop = next(params for name, _, params in drawn if "Crop" in name)["crop_coords"]
    jitter = next(params for name, _, params in drawn if name == "ColorJitter")
    order = tuple(JITTERS[i] for i in jitter.pop("order"))
    augmentation = Augmentation(crop_y=crop[1], crop_x=crop[0], order=order, **jitter)
    transform = ImageTransform(shortest_image_edge=256, crop_fraction=0.95, color_jitter_params=JITTER)
    assert np.array_equal(transform.train(golden["256x256::raw"], augmentation), golden["train0::view0"])


def test_a_draw_stays_within_its_ranges_and_reaches_both_ends_of_the_crop():
    transform = ImageTransform(
        shortest_image_edge=256, crop_fraction=0.95, random_rotation_angle=5, color_jitter_params=JITTER
    )
    rng = np.random.default_rng(1)
    draws = [transform.draw(rng) for _ in range(500)]
    assert {d.crop_y for d in draws} == {d.crop_x for d in draws} == set(range(256 - 243 + 1))
    assert all(abs(d.angle) <= 5 and abs(d.hue) <= 0.08 for d in draws)
    for name in ("brightness", "contrast", "saturation"):
        values = [getattr(d, name) for d in draws]
        assert 1 - JITTER[name] <= min(values) < 1 < max(values) <= 1 + JITTER[name]
    assert len({d.order for d in draws}) == 24


def test_equal_generators_draw_equal_augmentations():
    transform = ImageTransform(shortest_image_edge=256, crop_fraction=0.95, color_jitter_params=JITTER)
    assert transform.draw(np.random.default_rng(3)) == transform.draw(np.random.default_rng(3))


def test_without_jitter_and_at_the_centre_training_is_evaluation():
    transform = CONFIGS["eval_frac095"]
    frame = noise(120, 160)
    assert np.array_equal(transform.train(frame, Augmentation(crop_y=6, crop_x=6)), transform.eval(frame))


def test_jitter_that_is_not_drawn_changes_nothing():
    frame, transform = noise(256, 256), ImageTransform(shortest_image_edge=256, crop_fraction=1.0)
    assert np.array_equal(transform.train(frame, Augmentation(0, 0, order=tuple(JITTERS))), frame)


def test_in_training_each_view_is_padded_for_its_own_shape():
    transform = CONFIGS["eval_frac095"]
    augmentation = Augmentation(crop_y=6, crop_x=6)
    for height, width in ((256, 256), (240, 320), (320, 240)):
        out = transform.train(np.full((height, width, 3), 200, np.uint8), augmentation)
        rows, columns = (out[:, 128, 0] > 100).sum(), (out[128, :, 0] > 100).sum()
        assert (rows == 256) == (height >= width)
        assert (columns == 256) == (width >= height)


def test_rotation_is_counter_clockwise_about_the_centre():
    frame = np.zeros((256, 256, 3), np.uint8)
    frame[100:156, 200:256] = 255  # on the right
    transform = ImageTransform(shortest_image_edge=256, crop_fraction=1.0)
    turned = transform.train(frame, Augmentation(0, 0, angle=90.0))
    assert np.array_equal(turned, np.rot90(frame))


def test_the_colour_circle_closes_after_a_full_turn_and_gray_has_no_hue():
    gray = np.full((256, 256, 3), 90, np.uint8)
    transform = ImageTransform(shortest_image_edge=256, crop_fraction=1.0)
    assert np.array_equal(transform.train(gray, Augmentation(0, 0, hue=0.3, order=("hue",))), gray)
    out = transform.train(noise(256, 256), Augmentation(0, 0, saturation=0.0, order=("saturation",)))
    assert np.array_equal(out[..., 0], out[..., 1])
    red = np.zeros((256, 256, 3), np.uint8)
    red[..., 0] = 200
    green = transform.train(red, Augmentation(0, 0, hue=1 / 3, order=("hue",)))
    assert green[0, 0].tolist() == [0, 200, 0]


def test_vlm_resize_leaves_alone_what_fits_and_brings_the_rest_to_multiples_of_32():
    fits = noise(256, 288)
    assert vlm_resize(fits, 65536, 16777216, 32) is fits
    assert vlm_resize(noise(224, 224), 65536, 16777216, 32).shape == (256, 256, 3)  # too small an area
    assert vlm_resize(noise(300, 290), 65536, 16777216, 32).shape == (288, 288, 3)
    assert vlm_resize(noise(640, 640), 65536, 256 * 256, 32).shape == (256, 256, 3)  # too large an area
    with pytest.raises(ToolkitError, match="too narrow"):
        vlm_resize(noise(1, 300), 65536, 16777216, 32)


@pytest.mark.parametrize(
    "frame",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32), "x"],
)
def test_what_is_no_rgb_uint8_frame_is_refused(frame):
    with pytest.raises(ToolkitError, match="RGB uint8"):
        CONFIGS["eval_frac095"].eval(frame)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "shortest_image_edge"),
        ({"shortest_image_edge": 256}, "crop_fraction"),
        ({"shortest_image_edge": 256, "crop_fraction": 1.5}, r"\(0, 1\]"),
        ({"shortest_image_edge": 256, "crop_fraction": 1, "color_jitter_params": {"hui": 0.1}}, 'mean "hue"'),
        ({"shortest_image_edge": 256, "crop_fraction": 1, "color_jitter_params": {"hue": 0.7}}, "at most 0.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ToolkitError, match=message):
        ImageTransform(**settings)


def test_brightness_grows_with_its_factor():
    transform = ImageTransform(shortest_image_edge=256, crop_fraction=1.0)
    frame = noise(256, 256)
    means = [
        transform.train(frame, Augmentation(0, 0, brightness=f, order=("brightness",))).mean() for f in (0.7, 1, 1.3)
    ]
    assert all(low < high for low, high in pairwise(means))


def test_a_draw_turns_both_ways_and_crops_rows_and_columns_apart():
    jitter = {"brightness": 1.5, "hue": 0.1}
    transform = ImageTransform(
        shortest_image_edge=256, crop_fraction=0.95, random_rotation_angle=5, color_jitter_params=jitter
    )
    rng = np.random.default_rng(1)
    draws = [transform.draw(rng) for _ in range(200)]
    for values in ([d.angle / 5 for d in draws], [d.hue / 0.1 for d in draws]):
        assert -1 <= min(values) < -0.8 and 0.8 < max(values) <= 1
    assert any(d.crop_y != d.crop_x for d in draws)
    assert 0 <= min(d.brightness for d in draws) < 0.2 and max(d.brightness for d in draws) > 2.2
    assert {(d.contrast, d.saturation) for d in draws} == {(1.0, 1.0)}  # not named


def test_the_crop_is_taken_where_it_was_drawn():
    frame = np.zeros((256, 256, 3), np.uint8)
    frame[:128] = 200  # the upper half
    transform = ImageTransform(shortest_image_edge=256, crop_fraction=0.5)
    for y, x, expected in ((0, 100, 200), (128, 0, 0)):
        assert (transform.train(frame, Augmentation(crop_y=y, crop_x=x)) == expected).all()


def test_vlm_resize_keeps_the_shape_of_what_is_not_square():
    assert vlm_resize(noise(100, 200), 65536, 16777216, 32).shape == (192, 384, 3)  # sides rounded up
    assert vlm_resize(noise(640, 320), 65536, 65536, 32).shape == (352, 160, 3)  # and down
    assert vlm_resize(noise(2, 400), 1024, 16777216, 32).shape[0] == 32  # a ratio of 200 is accepted
    with pytest.raises(ToolkitError, match="too narrow"):
        vlm_resize(noise(402, 2), 1024, 16777216, 32)
