"""How much the head turns, in degrees: ours, from MediaPipe's mesh (THEval asks another network for the angles)."""

import numpy as np

_RIGHT_EYE, _LEFT_EYE, _FOREHEAD, _CHIN = 33, 263, 10, 152


def head_angles(mesh_TK3: np.ndarray) -> np.ndarray:
    """[T, 3] degrees: yaw, pitch and roll of the head; nan without a face.

    Two directions say how the head stands: from eye to eye, and from forehead to chin. The mesh's depth has the unit of
    its width.
    """
    points = np.asarray(mesh_TK3, np.float64)
    across = points[:, _LEFT_EYE] - points[:, _RIGHT_EYE]
    down = points[:, _CHIN] - points[:, _FOREHEAD]
    yaw = np.arctan2(across[:, 2], np.hypot(across[:, 0], across[:, 1]))
    pitch = np.arctan2(down[:, 2], np.hypot(down[:, 0], down[:, 1]))
    roll = np.arctan2(across[:, 1], across[:, 0])
    return np.degrees(np.stack([yaw, pitch, roll], 1))


def head_motion(mesh_TK3: np.ndarray) -> float:
    """Mean standard deviation of the three angles over the frames with a face, in degrees; nan with fewer than two."""
    angles = head_angles(mesh_TK3)
    angles = angles[np.isfinite(angles).all(1)]
    if len(angles) < 2:
        return float("nan")
    # Around its own mean direction: an upright head's roll does not jump from 180 to -180 degrees.
    return float(np.degrees(np.unwrap(np.radians(angles), axis=0)).std(0).mean())
