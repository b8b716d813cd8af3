"""Whether lips and sound belong together by SyncNet [Chung and Zisserman 2016] in ONNX, from a path (`--sync-network`),
in the conventions of its authors: five frames of a face of 224 pixels against 0.2 s of cepstra, offsets of 15 frames.

It has two inputs, faces [N, 3, 5, 224, 224] (blue first, 0 to 255) and cepstra [N, 1, 13, 20], and two outputs [N, D],
their features, in the order of the inputs.
"""

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.curate.onnx_networks import open_network
from omnihuman_jax.evaluation import face_crop, sync_offsets
from omnihuman_jax.runtime.files import file_sha256
from omnihuman_jax.typing import FPS

# Changes of what is computed; part of the key under which results are kept.
VERSION = 1

SCORES = ("syncnet_confidence", "syncnet_distance", "syncnet_offset_s", "syncnet_track", "syncnet_lead")
_FACES = [3, sync_offsets.FRAMES, sync_offsets.SIZE, sync_offsets.SIZE]
_CEPSTRA = [1, 13, sync_offsets.CEPSTRA]
_BATCH = 8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SyncNetwork:
    """A network on a disk that every worker sees. digest: of its bytes."""

    path: str
    digest: str

    @classmethod
    def load(cls, path: str) -> "SyncNetwork":
        """Raises:
        FileNotFoundError, ValueError, ImportError: no such file, or it is no such network.
        """
        file = Path(path).resolve()
        session = open_network(file)
        shapes = [list(one.shape[1:]) for one in session.get_inputs()]
        if shapes not in ([_FACES, _CEPSTRA], [_CEPSTRA, _FACES]):
            found = ", ".join(f"{one.name} {one.shape}" for one in session.get_inputs())
            raise ValueError(
                f"{file}: has the inputs {found}; SyncNet has faces [N, {', '.join(map(str, _FACES))}] and cepstra"
                f" [N, {', '.join(map(str, _CEPSTRA))}]"
            )
        network = cls(path=str(file), digest=file_sha256(file))
        faces = np.zeros((_BATCH, _FACES[1], _FACES[2], _FACES[3], 3), np.float32)
        try:
            outputs = network._features(faces, np.zeros((_BATCH, *_CEPSTRA[1:]), np.float32))
        except Exception as error:  # onnxruntime's own classes, which it does not export
            why = " ".join(str(error).split())
            raise ValueError(f"{file}: takes no batch of {_BATCH} ({why}); export it with a free first axis") from error
        if [one.ndim for one in outputs] != [2, 2] or outputs[0].shape != outputs[1].shape:
            found = " and ".join(str(one.shape) for one in outputs)
            raise ValueError(f"{file}: puts out {found}; SyncNet has features [N, D] of both")
        return network

    def _features(self, faces_BTHW3: np.ndarray, cepstra_BCT: np.ndarray) -> tuple[np.ndarray, ...]:
        session: Any = open_network(Path(self.path))
        faces, cepstra = np.ascontiguousarray(faces_BTHW3.transpose(0, 4, 1, 2, 3)), cepstra_BCT[:, None]
        inputs = session.get_inputs()
        is_faces_first = list(inputs[0].shape[1:]) == _FACES
        fed = (faces, cepstra) if is_faces_first else (cepstra, faces)
        found = session.run(None, {one.name: array for one, array in zip(inputs, fed, strict=True)})
        return tuple(found if is_faces_first else reversed(found))

    def measure(self, faces_THW3: np.ndarray, wave: np.ndarray) -> sync_offsets.Sync:
        """`sync_offsets.measure` by this network."""

        def features(faces_BTHW3: np.ndarray, cepstra_BCT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            face, sound = self._features(faces_BTHW3, cepstra_BCT)
            return face, sound

        return sync_offsets.measure(features, faces_THW3, wave, _BATCH)


def cut_out(frames: Iterable[np.ndarray], box_TN4: np.ndarray) -> list[np.ndarray]:
    """Of each of N tracks uint8 [T, 224, 224, 3]: the face in every frame.

    box_TN4: x0, y0, x1, y1 in pixels of the frames, 0 where a face is not seen; each track has one at least.
    """
    corners = np.where((box_TN4 == 0).all(-1, keepdims=True), np.nan, box_TN4.astype(np.float64))
    squares = [face_crop.face_squares(corners[:, n].reshape(-1, 2, 2)) for n in range(box_TN4.shape[1])]
    size = sync_offsets.SIZE
    crops = [np.empty((len(box_TN4), size, size, 3), np.uint8) for _ in squares]
    count = 0
    for frame in itertools.islice(frames, len(box_TN4)):
        for own, square_T3 in zip(crops, squares, strict=True):
            assert square_T3 is not None
            own[count] = face_crop.crop(frame, square_T3[count], size)
        count += 1
    return [own[:count] for own in crops]


def sync_scores(network: SyncNetwork, faces_NTHW3: list[np.ndarray], wave: np.ndarray) -> dict[str, float]:
    """`SCORES` of the track that follows the sound best; syncnet_lead: its confidence less that of the other, 0 where
    there is none. The sound is late if the offset is positive.
    """
    found = [network.measure(faces, wave) for faces in faces_NTHW3]
    order = sorted(range(len(found)), key=lambda track: (-found[track].confidence, track))
    best = found[order[0]]
    return {
        "syncnet_confidence": best.confidence,
        "syncnet_distance": best.distance,
        "syncnet_offset_s": -best.offset / FPS,
        "syncnet_track": float(order[0]),
        "syncnet_lead": best.confidence - found[order[1]].confidence if len(order) > 1 else 0.0,
    }
