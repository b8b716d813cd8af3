"""Cuts and dissolves by a network: TransNetV2 [Soucek and Lokoc 2020] in ONNX, from a path.

It sees thumbnails of 27 x 48 pixels, 100 at a time, and says of each how likely a shot ends there; of every 100 the
middle 50 count. The file has one input [1, 100, 27, 48, 3] (0..255, uint8 or float) and, first among its outputs, the
probabilities [1, 100] or [1, 100, 1], as the network's `single_frame` prediction through a sigmoid.
"""

from pathlib import Path

import numpy as np

from data_pipelines.curate.onnx_networks import open_network

# Changes of what is computed; part of the key under which results are kept.
VERSION = 1

THUMBNAIL = (27, 48)
_WINDOW, _STRIDE = 100, 50
_MARGIN = (_WINDOW - _STRIDE) // 2
_MIN_PROBABILITY = 0.5


class ShotNetwork:
    """Takes thumbnails in order and gives their probabilities; holds a window of them.

    Raises:
        FileNotFoundError, ValueError, ImportError: as `open_network`; or the file has other inputs.
    """

    def __init__(self, path: Path) -> None:
        self._session = open_network(path)
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or list(inputs[0].shape[-3:]) != [*THUMBNAIL, 3]:
            shapes = ", ".join(f"{one.name} {one.shape}" for one in inputs)
            raise ValueError(f"{path}: has the inputs {shapes}; a shot network has one, [1, {_WINDOW}, 27, 48, 3]")
        self._input = inputs[0]
        self._waiting: list[np.ndarray] = []
        self._found: list[float] = []
        self._count = 0

    def add(self, thumbnail: np.ndarray) -> None:
        """A thumbnail uint8 [27, 48, 3]."""
        if not self._count:
            self._waiting += [thumbnail] * _MARGIN
        self._waiting.append(thumbnail)
        self._count += 1
        self._run_whole_windows()

    def probabilities(self) -> np.ndarray:
        """float64 [T], of all thumbnails; nothing can be added after."""
        while len(self._found) < self._count:
            self._waiting.append(self._waiting[-1])
            self._run_whole_windows()
        return np.array(self._found[: self._count])

    def _run_whole_windows(self) -> None:
        if len(self._waiting) < _WINDOW:
            return
        kind = np.uint8 if "uint8" in self._input.type else np.float32
        found = self._session.run(None, {self._input.name: np.stack(self._waiting)[None].astype(kind)})[0]
        self._found += np.ravel(found)[_MARGIN : _MARGIN + _STRIDE].tolist()
        del self._waiting[:_STRIDE]


def cuts_of(probabilities_T: np.ndarray) -> list[int]:
    """Frames that begin a new shot. A transition of several frames, a dissolve, is a shot of its own, which is too
    short to be kept.
    """
    ends = np.flatnonzero(probabilities_T > _MIN_PROBABILITY)
    cuts: list[int] = []
    for run in np.split(ends, np.flatnonzero(np.diff(ends) > 1) + 1):
        if run.size:
            # One frame is the last before a cut.
            cuts += [int(run[-1]) + 1] if run.size == 1 else [int(run[0]), int(run[-1]) + 1]
    return sorted({cut for cut in cuts if 0 < cut < len(probabilities_T)})
