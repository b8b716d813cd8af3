"""Keypoints from a file are pixels and confidences, or refused with the file and the first place."""

from pathlib import Path

import numpy as np
import pytest

from omnihuman_jax.serving.poses_omnihuman import read_keypoints


def write(path: Path, keypoints: np.ndarray, size: tuple[float, float] = (96, 128)) -> Path:
    np.savez(path, keypoints_TJ3=keypoints, height=size[0], width=size[1])
    return path


def test_what_is_right_is_read(tmp_path: Path) -> None:
    keypoints = np.full((3, 5, 3), 0.5, np.float32)
    keypoints[0, 0] = -20.0, 4000.0, 1.0  # outside of the picture is no error
    read, height, width = read_keypoints(write(tmp_path / "a.npz", keypoints))
    np.testing.assert_array_equal(read, keypoints)
    assert (height, width) == (96, 128)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, np.nan, "x of keypoint 4 in frame 2 is nan"),
        (1, np.inf, "y of keypoint 4 in frame 2 is inf"),
        (1, -1e9, r"y of keypoint 4 in frame 2 is -1e\+09; it must be in \[-65536, 65536\]"),
        (2, 1.5, r"confidence of keypoint 4 in frame 2 is 1\.5; it must be in \[0, 1\]"),
        (2, -0.1, r"confidence of keypoint 4 in frame 2 is -0\.1"),
        (2, np.nan, "confidence of keypoint 4 in frame 2 is nan"),
    ],
)
def test_the_first_wrong_one_is_named(column: int, value: float, message: str, tmp_path: Path) -> None:
    keypoints = np.full((4, 5, 3), 0.5, np.float32)
    keypoints[2, 4, column] = keypoints[3, 0, column] = value
    with pytest.raises(ValueError, match=rf"a\.npz: {message}"):
        read_keypoints(write(tmp_path / "a.npz", keypoints))


def test_no_frames_and_no_picture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.npz: keypoints of no frame"):
        read_keypoints(write(tmp_path / "a.npz", np.zeros((0, 5, 3), np.float32)))
    with pytest.raises(ValueError, match=r"a\.npz: height and width \(0, 128\) must be 1 to 65536"):
        read_keypoints(write(tmp_path / "a.npz", np.zeros((1, 5, 3), np.float32), (0, 128)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"height": np.inf}, "no keypoints with height and width"),
        ({"height": np.array([1, 2])}, "no keypoints with height and width"),
        ({"height": 2**62}, "must be 1 to 65536"),
        ({"keypoints_TJ3": np.ones((1, 5, 3), complex)}, "complex128"),
        ({"keypoints_TJ3": np.full((1, 5, 3), 1e300)}, "is inf"),
        ({"keypoints_TJ3": np.array("abc")}, "expected numbers"),
        ({"fps": 30.0}, "fps is 30; keypoints must be at 25"),
    ],
)
def test_other_kinds_of_numbers_are_refused_by_name(changed: dict, message: str, tmp_path: Path) -> None:
    right = {"keypoints_TJ3": np.ones((1, 5, 3), np.float32), "height": 96, "width": 128, "fps": 25}
    np.savez(tmp_path / "a.npz", **right)
    read_keypoints(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", **(right | changed))
    with pytest.raises(ValueError, match=rf"a\.npz: .*{message}"):
        read_keypoints(tmp_path / "a.npz")
