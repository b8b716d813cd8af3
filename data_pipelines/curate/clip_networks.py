"""Scores of clips by networks that this project has no weights of: an aesthetic head, a quality network, any network in
ONNX that says one number of some frames. Given as `--network NAME=PATH.onnx`; what it wants to see is in `PATH.json`
beside it, with the fields of `View` (what that does not name keeps its default):

    {"frames": 8, "height": 224, "width": 224, "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28],
     "layout": "NCHW", "output": "score"}

It has one input. What it puts out is averaged: a number a frame, or one of the clip. Its bytes and its view are in the
key of the stage, so that another network scores all clips again and the same one, from wherever, none.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.curate.onnx_networks import open_network
from omnihuman_jax.plain_values import check_finite, structure
from omnihuman_jax.runtime.files import file_sha256

# Changes of what is computed; part of the key under which results are kept.
VERSION = 1

# The scores that a table has columns for.
NAMES = ("aesthetic", "technical")
_LAYOUTS = ("NCHW", "NCTHW", "NTCHW")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What a network is shown.

    frames: how many, evenly spaced over the clip.
    height, width: pixels; the middle of the picture, scaled to fill them.
    mean, std: taken off RGB in [0, 1], and divided by.
    layout: NCHW, a batch of frames; NCTHW or NTCHW, one clip.
    output: name of the output that is the score; "": the first.
    """

    frames: int = 8
    height: int = 224
    width: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    layout: str = "NCHW"
    output: str = ""

    def validate(self) -> None:
        """ValueError with the field, the value and what it may be."""
        check_finite(self)
        for name in ("frames", "height", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be greater than 0, not {list(self.std)}")
        if self.layout not in _LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(_LAYOUTS)}, not {self.layout!r}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ClipNetwork:
    """A network on a disk that every worker sees, and what it wants to see. digest: of its bytes and its view."""

    path: str
    view: View
    digest: str

    @classmethod
    def load(cls, path: str) -> "ClipNetwork":
        """Raises:
        FileNotFoundError, ValueError, ImportError: no such file, or it or its view is no such network.
        """
        file, described = Path(path).resolve(), Path(path).with_suffix(".json")
        view = View()
        if described.is_file():
            try:
                view = structure(View, json.loads(described.read_text(encoding="utf-8-sig")), whole="the view")
                view.validate()
            except ValueError as error:
                raise ValueError(f"{described}: {error}") from None
        session = open_network(file)
        outputs = [output.name for output in session.get_outputs()]
        if len(session.get_inputs()) != 1:
            names = ", ".join(one.name for one in session.get_inputs())
            raise ValueError(f"{file}: has the inputs {names}; export a network with one, the frames")
        if view.output and view.output not in outputs:
            raise ValueError(f"{described}: output must be one of {', '.join(outputs)}, not {view.output!r}")
        facts = [file_sha256(file), dataclasses.asdict(view)]
        return cls(path=str(file), view=view, digest=hashlib.sha256(json.dumps(facts).encode()).hexdigest())

    def score(self, frames: Sequence[np.ndarray]) -> float:
        """The score of RGB uint8 frames [H, W, 3] of a clip: `view.frames` of them, fewer of a shorter clip."""
        return float(np.mean(self.outputs(frames), dtype=np.float64))

    def outputs(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """What the network puts out of RGB uint8 frames."""
        view = self.view
        pictures = np.stack([_prepared(frame, view) for frame in frames])
        if view.layout != "NCHW":
            pictures = (pictures.swapaxes(0, 1) if view.layout == "NCTHW" else pictures)[None]
        session = open_network(Path(self.path))
        wanted = [view.output or session.get_outputs()[0].name]
        found: list[np.ndarray] = session.run(wanted, {session.get_inputs()[0].name: np.ascontiguousarray(pictures)})
        return found[0]


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """NAME -> path, of `--network NAME=PATH.onnx`; ValueError for another name, or one that is given twice."""
    paths: dict[str, str] = {}
    for text in arguments:
        name, _, path = text.partition("=")
        if name not in NAMES or not path:
            raise ValueError(f"--network {text}: NAME=PATH.onnx, with NAME one of {', '.join(NAMES)}")
        if name in paths:
            raise ValueError(f"--network {text}: {name} is given twice; leave one out")
        paths[name] = path
    return paths


def load_all(paths: Mapping[str, str]) -> dict[str, ClipNetwork]:
    """The networks by name; errors as `ClipNetwork.load` has them, or ValueError for a name without a column."""
    if unknown := sorted(set(paths) - set(NAMES)):
        raise ValueError(f"networks: {', '.join(unknown)} must be among {', '.join(NAMES)}")
    return {name: ClipNetwork.load(paths[name]) for name in NAMES if name in paths}


def _prepared(frame: np.ndarray, view: View) -> np.ndarray:
    """float32 [3, height, width]: the middle of a frame, scaled and normalised."""
    import cv2  # comes with MediaPipe in the curation extra

    scale = max(view.height / frame.shape[0], view.width / frame.shape[1])
    size = (max(view.width, round(frame.shape[1] * scale)), max(view.height, round(frame.shape[0] * scale)))
    scaled = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (size[1] - view.height) // 2, (size[0] - view.width) // 2
    middle = scaled[top : top + view.height, left : left + view.width]
    normalised = (middle.astype(np.float32) / 255 - np.array(view.mean, np.float32)) / np.array(view.std, np.float32)
    return normalised.transpose(2, 0, 1)
