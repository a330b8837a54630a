import numpy as np
import pytest

from gr00t.data.schema import ActionFormat
from gr00t.data.state_action import _from_rotvec, _to_rotvec, absolute_pose, relative_pose
from gr00t.errors import ToolkitError

ROT6D, ROTVEC = ActionFormat.XYZ_ROT6D, ActionFormat.XYZ_ROTVEC


def random_poses(format: ActionFormat, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(*shape, 3))
    numbers = vectors if format is ROTVEC else _from_rotvec(vectors)[..., :2, :].reshape(*shape, 6)
    return np.concatenate([rng.normal(size=(*shape, 3)), numbers], axis=-1)


@pytest.mark.parametrize("format", [ROT6D, ROTVEC])
def test_absolute_undoes_relative(format):
    poses, reference = random_poses(format, 4, 16), random_poses(format, 4)
    if format is ROTVEC:  # longer vectors come back as the equal rotation within half a turn
        poses[..., 3:] *= 0.5
    back = absolute_pose(relative_pose(poses, reference, format), reference, format)
    assert back.dtype == np.float64
    np.testing.assert_allclose(back, poses, atol=1e-12)


@pytest.mark.parametrize("format", [ROT6D, ROTVEC])
def test_a_pose_relative_to_itself_is_the_identity(format):
    reference = random_poses(format)
    identity = [0] * 6 if format is ROTVEC else [0, 0, 0, 1, 0, 0, 0, 1, 0]
    np.testing.assert_allclose(relative_pose(reference[None], reference, format)[0], identity, atol=1e-12)


def test_both_formats_describe_the_same_motion():
    vectors, reference = random_poses(ROTVEC, 8), random_poses(ROTVEC)

    def rows(pose: np.ndarray) -> np.ndarray:
        rotation = _from_rotvec(pose[..., 3:])[..., :2, :]
        return np.concatenate([pose[..., :3], rotation.reshape(*pose.shape[:-1], 6)], axis=-1)

    np.testing.assert_allclose(
        relative_pose(rows(vectors), rows(reference), ROT6D),
        rows(relative_pose(vectors, reference, ROTVEC)),
        atol=1e-12,
    )


def test_the_position_is_seen_from_the_reference():
    quarter = np.array([1.0, 2.0, 3.0, 0, 0, np.pi / 2])  # turned left: its x axis points along the world's y
    out = relative_pose(np.array([[1.0, 5.0, 3.0, 0, 0, np.pi / 2]]), quarter, ROTVEC)
    np.testing.assert_allclose(out, [[3, 0, 0, 0, 0, 0]], atol=1e-12)


@pytest.mark.parametrize("angle", [0.0, 1e-14, 1e-8, 1e-3, 1.0, 3.0, np.pi - 1e-9, np.pi])
def test_rotation_vectors_survive_from_no_turn_to_half_a_turn(angle):
    for axis in (np.eye(3)[0], np.eye(3)[1], np.eye(3)[2], np.ones(3) / np.sqrt(3), np.array([0.6, -0.8, 0])):
        rotation = _from_rotvec(angle * axis)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-14)
        again = _to_rotvec(rotation)
        np.testing.assert_allclose(_from_rotvec(again), rotation, atol=1e-12)
        assert np.linalg.norm(again) == pytest.approx(angle, abs=1e-12)


def test_unclean_rows_are_made_orthogonal():
    clean = random_poses(ROT6D)
    unclean = clean.copy()
    unclean[3:6] *= 3.0
    unclean[6:] = 2.0 * clean[6:] + 0.5 * clean[3:6]
    np.testing.assert_allclose(relative_pose(unclean[None], clean, ROT6D)[0, 3:], [1, 0, 0, 0, 1, 0], atol=1e-12)


def test_poses_that_cannot_be_are_refused():
    with pytest.raises(ToolkitError, match="degenerate"):
        relative_pose(np.zeros((1, 9)), np.zeros(9), ROT6D)
    with pytest.raises(ToolkitError, match="9 numbers"):
        relative_pose(np.zeros((1, 6)), np.zeros(6), ROT6D)
    with pytest.raises(ToolkitError, match="XYZ_ROT6D, XYZ_ROTVEC"):
        relative_pose(np.zeros((1, 6)), np.zeros(6), ActionFormat.DEFAULT)
