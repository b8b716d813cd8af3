"""Where people are: YOLOX [Ge et al. 2021] in ONNX, from a path (`--person-network`).

It sees the picture scaled to fit 640 x 640 (or what its input says), at the top left of a field of grey 114, as BGR
from 0 to 255. It has one input [1, 3, H, W] and one output [1, A, 5 + C]: for each cell of the grids of 8, 16 and 32
pixels the centre and the logarithm of the size of a box in cells, how likely there is a thing, and how likely it is of
each class; people are the first class. Or, as MMDeploy exports it, with the last step inside: first among its outputs
[1, N, 5], corners in pixels and a score, then the classes [1, N].
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.curate.onnx_networks import open_network
from omnihuman_jax.runtime.files import file_sha256

# Changes of what is computed; part of the key under which results are kept.
VERSION = 1

_SIDE = 640
_STRIDES = (8, 16, 32)
_GREY = 114
# The first is DWPose's; the second is that of YOLOX's own demonstration, and DWPose's.
_MIN_SCORE = 0.3
_MAX_OVERLAP = 0.45
_PERSON = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PersonNetwork:
    """A network on a disk that every worker sees. size: (height, width) of its input; digest: of its bytes."""

    path: str
    size: tuple[int, int]
    digest: str

    @classmethod
    def load(cls, path: str) -> "PersonNetwork":
        """Raises:
        FileNotFoundError, ValueError, ImportError: no such file, or it is no such network.
        """
        file = Path(path).resolve()
        session = open_network(file)
        size = picture_size(file, session, (_SIDE, _SIDE), "a person network")
        shape = session.get_outputs()[0].shape
        _check_shape(file, size, shape)
        return cls(path=str(file), size=size, digest=file_sha256(file))

    def boxes(self, frame: np.ndarray) -> np.ndarray:
        """float32 [n, 5]: x0, y0, x1, y1 and score of each person in an RGB uint8 frame [H, W, 3], in its pixels, the
        best first.
        """
        picture, scale = letterboxed(frame, self.size)
        session = open_network(Path(self.path))
        found = session.run(None, {session.get_inputs()[0].name: picture[None]})
        _check_shape(Path(self.path), self.size, list(found[0].shape))
        if found[0].shape[-1] == 5:
            boxes, scores = found[0][0, :, :4], found[0][0, :, 4]
            mine = found[1][0] == _PERSON if len(found) > 1 else np.ones(len(scores), bool)
            boxes, scores = boxes[mine], scores[mine]
        else:
            boxes, scores = decoded(found[0][0], self.size)
        kept = _best(boxes, scores)
        return np.concatenate([boxes[kept] / scale, scores[kept, None]], axis=1).astype(np.float32)


def picture_size(path: Path, session: Any, default: tuple[int, int], what: str) -> tuple[int, int]:
    """(height, width) of the one input [1, 3, H, W] of a network; what it leaves open is the default. ValueError for
    another input.
    """
    inputs = session.get_inputs()
    shape = inputs[0].shape
    wrong = len(inputs) != 1 or len(shape) != 4 or shape[1] != 3 or inputs[0].type != "tensor(float)"
    if wrong or (isinstance(shape[0], int) and shape[0] != 1):
        shapes = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        raise ValueError(f"{path}: has the inputs {shapes}; {what} has one, tensor(float) [1, 3, H, W]")
    height, width = (side if isinstance(side, int) else usual for side, usual in zip(shape[2:], default, strict=True))
    return height, width


def letterboxed(frame: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, float]:
    """(BGR float32 [3, H, W] of 0..255, how much the frame was scaled)."""
    import cv2  # comes with MediaPipe in the curation extra

    scale = min(size[0] / frame.shape[0], size[1] / frame.shape[1])
    height, width = int(frame.shape[0] * scale), int(frame.shape[1] * scale)
    field = np.full((*size, 3), _GREY, np.uint8)
    field[:height, :width] = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(field[..., ::-1].transpose(2, 0, 1), np.float32), scale


def decoded(output_AC: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(boxes x0, y0, x1, y1 [A, 4] in pixels of the network's picture, how likely each is a person [A])."""
    cells, strides = [], []
    for stride in _STRIDES:
        rows, columns = np.mgrid[: size[0] // stride, : size[1] // stride]
        cells.append(np.stack([columns.ravel(), rows.ravel()], axis=1))
        strides.append(np.full((columns.size, 1), stride))
    stride_A1 = np.concatenate(strides)
    centre_A2 = (output_AC[:, :2] + np.concatenate(cells)) * stride_A1
    half_A2 = np.exp(output_AC[:, 2:4]) * stride_A1 / 2
    boxes = np.concatenate([centre_A2 - half_A2, centre_A2 + half_A2], axis=1)
    return boxes, output_AC[:, 4] * output_AC[:, 5 + _PERSON]


def _best(boxes_A4: np.ndarray, scores_A: np.ndarray) -> np.ndarray:
    """Which are people: above the least score, and no better one on the same place."""
    import cv2  # comes with MediaPipe in the curation extra

    sides = boxes_A4[:, 2:] - boxes_A4[:, :2]
    corners = np.concatenate([boxes_A4[:, :2], sides], axis=1).astype(np.float64)
    sound = np.flatnonzero((scores_A > _MIN_SCORE) & np.isfinite(corners).all(axis=1) & (sides > 0).all(axis=1))
    if not sound.size:
        return sound
    scores = scores_A[sound].astype(np.float64)
    kept = cv2.dnn.NMSBoxes(corners[sound].tolist(), scores.tolist(), _MIN_SCORE, _MAX_OVERLAP)
    return sound[np.array(kept, int).ravel()]


def _check_shape(path: Path, size: tuple[int, int], shape: list[Any]) -> None:
    """ValueError unless the first output can be what the file's head says; names and None stand for any number."""
    cells = sum((size[0] // stride) * (size[1] // stride) for stride in _STRIDES)
    known = [side if isinstance(side, int) else None for side in shape]
    fits = (
        len(known) == 3
        and known[0] in (1, None)
        and (known[2] == 5 or (known[1] in (cells, None) and (known[2] is None or known[2] > 5)))
    )
    if shape and not fits:
        raise ValueError(
            f"{path}: puts out {list(shape)}; a person network puts out [1, {cells}, 5 + classes], or [1, N, 5] with"
            " its last step inside"
        )
