"""Average keypoint distance (AKD): how far the made body is from the true one."""

import numpy as np

MIN_CONFIDENCE = 0.3


def keypoint_distance(made_TJ3: np.ndarray, true_TJ3: np.ndarray, height: int) -> float:
    """Mean distance of the keypoints that both videos show, in percent of the picture's height; nan where none is.

    Keypoints are x, y in pixels and confidence; what one of the videos does not show does not count here
    (`missing_keypoints`).
    """
    both = (made_TJ3[..., 2] >= MIN_CONFIDENCE) & (true_TJ3[..., 2] >= MIN_CONFIDENCE)
    if not both.any():
        return float("nan")
    apart = np.linalg.norm(np.asarray(made_TJ3, np.float64)[..., :2] - true_TJ3[..., :2], axis=-1)
    return float(100 * apart[both].mean() / height)


def missing_keypoints(made_TJ3: np.ndarray, true_TJ3: np.ndarray) -> float:
    """Share of the truth's keypoints that the made video does not show; nan where the truth shows none."""
    true = true_TJ3[..., 2] >= MIN_CONFIDENCE
    return float((made_TJ3[..., 2] < MIN_CONFIDENCE)[true].mean()) if true.any() else float("nan")
