"""A vector a clip, by a network of the user's (`--embedding-network PATH.onnx`: DINOv2, CLIP's or another's picture
side): `select` finds clips that are much alike by it (`duplicates.py`).

It is shown the clip's thumbnail, so that no video is opened, as `PATH.json` says (`clip_networks.View`; of its `frames`
there is one). What it puts out, of any shape, is the vector. A row keeps it with length 1, as float16, and its
signature: on which side of `SIGNATURE_BITS` planes it lies.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path

import numpy as np

from data_pipelines.curate.clip_networks import ClipNetwork

# Changes of what is computed; part of the key under which results are kept.
VERSION = 1

SIGNATURE_BITS = 256
_SIZES = (8, 8192)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingNetwork:
    """A network that gives `size` numbers of a picture."""

    network: ClipNetwork
    size: int

    @classmethod
    def load(cls, path: str) -> "EmbeddingNetwork":
        """Raises:
        FileNotFoundError, ValueError, ImportError: no such file, or it or its view is no such network.
        """
        network = ClipNetwork.load(path)
        view = network.view
        try:
            found = network.outputs([np.full((view.height, view.width, 3), 128, np.uint8)])
        except Exception as error:  # onnxruntime's own classes, which it does not export
            why = " ".join(str(error).split())
            raise ValueError(
                f"{path}: takes no picture of {view.height} x {view.width} as {view.layout} ({why}); say what it takes"
                f" in {Path(path).with_suffix('.json').name}"
            ) from error
        low, high = _SIZES
        if not low <= found.size <= high:
            raise ValueError(
                f"{path}: puts out {found.size} numbers of a picture, an embedding has {low} to {high}; name the right"
                f" output in {Path(path).with_suffix('.json').name}"
            )
        return cls(network=network, size=found.size)

    def embed(self, picture: np.ndarray) -> np.ndarray:
        """float16 [size], of length 1, of an RGB uint8 picture [H, W, 3]; ValueError where it has no direction."""
        vector = np.ravel(self.network.outputs([picture])).astype(np.float64)
        length = float(np.linalg.norm(vector))
        if vector.size != self.size or not np.isfinite(length) or length == 0:
            raise ValueError(f"the embedding network put out {vector.size} numbers of length {length}")
        return (vector / length).astype(np.float16)


def signature(vector: np.ndarray) -> bytes:
    """`SIGNATURE_BITS` bits: those of two vectors differ in a share of angle / pi of them."""
    return np.packbits(_planes(vector.size) @ vector.astype(np.float32) > 0).tobytes()


@functools.cache
def _planes(size: int) -> np.ndarray:
    """float32 [SIGNATURE_BITS, size], 1 or -1 each: the same everywhere and always."""
    bits = hashlib.shake_256(f"planes {size}".encode()).digest(SIGNATURE_BITS * size // 8)
    return np.unpackbits(np.frombuffer(bits, np.uint8)).reshape(SIGNATURE_BITS, size).astype(np.float32) * 2 - 1
