"""Text in the picture: how much of it boxes around lines of text cover (titles, subtitles, watermarks, banners).

PP-OCRv6's detector (small) gives a probability of text by pixel, and boxes are made of it as DB does [Liao et al. 2020,
"Real-time Scene Text Detection with Differentiable Binarization"]: contours where it is above 0.3, the smallest
rectangle around each, grown again by what the network's training shrank. What is written in the scene, a shop sign or
the spine of a book, counts too: no pixel says who wrote it.

Three things are ours. Pictures are scaled to 480 lines (the shorter side) and at most to twice their size, not up to
736, which finds text in faces of small pictures. A box higher than a quarter of the picture is none: without text, the
network sometimes puts one around a face or a car, at a score that lines of real text have as well. And of several
stills of a clip, a box counts where another one has text too: what is laid over a film stays, or is followed by the
next subtitle in its place, and what the network takes for text by mistake is seldom there again.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.curate import network_files
from data_pipelines.curate.onnx_networks import open_network

# Changes of what is computed; part of the key under which results are kept.
VERSION = 2

NETWORK = "rapidocr/PP-OCRv6_det_small.onnx"
_SHORT_SIDE = 480
_MAX_SCALE = 2.0
_MULTIPLE = 32
_MIN_PROBABILITY = 0.3
_MIN_SCORE = 0.6
_UNCLIP = 1.6
_MIN_SIDE = 3
_MAX_LINE_SHARE = 0.25
# Of a box, covered by those of another still.
_MIN_CONFIRMED = 0.5


def text_area_share(frames: Sequence[np.ndarray]) -> float:
    """The share of the picture that boxes of text cover, mean over RGB uint8 frames [H, W, 3] of a clip; 0..1.

    Raises:
        ConnectionError, ImportError: the network cannot be fetched, or onnxruntime is not installed.
    """
    network = network_files.fetched(NETWORK)
    size = frames[0].shape[:2]
    found = confirmed([text_boxes(frame, network) for frame in frames], *size)
    return float(np.mean([covered_share(boxes, *size) for boxes in found]))


def confirmed(boxes: Sequence[Sequence[np.ndarray]], height: int, width: int) -> list[list[np.ndarray]]:
    """Of each still's boxes those that another still confirms; of a single still all."""
    if len(boxes) < 2:
        return [list(one) for one in boxes]
    masks = [_mask(of_still, height, width) for of_still in boxes]

    def covered(box: np.ndarray, mask_HW: np.ndarray) -> float:
        own_HW = _mask([box], height, width).astype(bool)
        return float(mask_HW[own_HW].mean()) if own_HW.any() else 0.0

    return [
        [
            box
            for box in of_still
            if any(covered(box, mask) >= _MIN_CONFIRMED for other, mask in enumerate(masks) if other != still)
        ]
        for still, of_still in enumerate(boxes)
    ]


def text_boxes(frame: np.ndarray, network: Path, short_side: int = _SHORT_SIDE) -> list[np.ndarray]:
    """Rectangles around lines of text in an RGB uint8 frame [H, W, 3]: the corners of each, float32 [4, 2], x and y in
    pixels.
    """
    import cv2  # comes with MediaPipe in the curation extra

    height, width = frame.shape[:2]
    scale = min(short_side / min(height, width), _MAX_SCALE)
    size = [max(_MULTIPLE, round(side * scale / _MULTIPLE) * _MULTIPLE) for side in (width, height)]
    # The network was trained on BGR, in [-1, 1].
    scaled = cv2.resize(frame[..., ::-1], size).astype(np.float32) / 127.5 - 1
    session = open_network(network)
    (output,) = session.run(None, {session.get_inputs()[0].name: scaled.transpose(2, 0, 1)[None]})
    to_pixels = np.array([width / size[0], height / size[1]], np.float32)
    boxes = [box * to_pixels for box in boxes_of(output[0, 0])]
    return [box for box in boxes if _line_height(box) <= _MAX_LINE_SHARE * height]


def boxes_of(probability_HW: np.ndarray, min_score: float = _MIN_SCORE) -> list[np.ndarray]:
    """The boxes of a map of probabilities, float32 [4, 2] each, in its pixels."""
    import cv2

    # The dilation joins letters that a gap of one pixel parts.
    mask = cv2.dilate((probability_HW > _MIN_PROBABILITY).astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    boxes = []
    for contour in contours:
        center, sides, angle = cv2.minAreaRect(contour)
        if min(sides) < _MIN_SIDE or _score(probability_HW, cv2.boxPoints((center, sides, angle))) < min_score:
            continue
        grow = _UNCLIP * sides[0] * sides[1] / (2 * (sides[0] + sides[1]))
        boxes.append(cv2.boxPoints((center, (sides[0] + 2 * grow, sides[1] + 2 * grow), angle)))
    return boxes


def covered_share(boxes: Sequence[np.ndarray], height: int, width: int) -> float:
    """The share of a picture that boxes cover together, each part of it once."""
    return float(_mask(boxes, height, width).mean())


def _mask(boxes: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """uint8 [H, W]: 1 in a box."""
    import cv2

    mask = np.zeros((height, width), np.uint8)
    for box in boxes:
        cv2.fillPoly(mask, [np.round(box).astype(np.int32)], 1)
    return mask


def _score(probability_HW: np.ndarray, corners: np.ndarray) -> float:
    """The mean probability inside a box."""
    import cv2

    mask = np.zeros(probability_HW.shape, np.uint8)
    cv2.fillPoly(mask, [corners.astype(np.int32)], 1)
    return float(cv2.mean(probability_HW, mask)[0])


def _line_height(box: np.ndarray) -> float:
    """The shorter side of a rectangle."""
    return float(min(np.linalg.norm(box[0] - box[1]), np.linalg.norm(box[1] - box[2])))
