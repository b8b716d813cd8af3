"""What the field's measures need of a video, taken once and kept: meshes, keypoints, sound, features of networks.

Each group of arrays lies in a file of its own with what it depends on (the video's bytes, the network's); a second run
reads what still holds and takes the rest.
"""

import dataclasses
import functools
import importlib.util
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from omnihuman_jax.evaluation import face_crop, i3d, inception, loudness, sync_offsets, syncnet
from omnihuman_jax.evaluation.face_identity import FaceIdentity
from omnihuman_jax.evaluation.field_table import SCORERS
from omnihuman_jax.runtime import files
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.typing import FPS, SAMPLE_RATE_HZ

VERSION = 1
"""Goes up with every change of what a group holds."""
FRAME_STEP = 5
"""FID looks at every 5th frame: neighbours are nearly one picture."""
_HOW = "docs/evaluation.md says where the public file is and how it becomes .safetensors"
_ARRAYS = {
    "mesh": "mesh_TK3", "body": "keypoints_TJ3", "identity": "identity_N128", "sync": "sync_3",
    "inception": "inception_ND", "i3d": "i3d_ND", "sound": "loudness_T",
}  # fmt: skip
"""Group -> the array that it gives; one of a `--scorer` is named as its group."""
_LANDMARK_SIDE = 256
"""Smaller pictures are enlarged before anybody looks for a face or a body in them: the networks were not made for
less.
"""


# What the networks' authors call the files of their weights; docs/evaluation.md says where they are.
INCEPTION_FILE, I3D_FILE, SYNCNET_FILE = (
    "weights-inception-2015-12-05-6726825d.pth", "i3d_pretrained_400.pt", "syncnet_v2.model"
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """Files of weights that were given; None: the rows that need them say so. scorers: name -> Python file."""

    inception: Path | None = None
    i3d: Path | None = None
    syncnet: Path | None = None
    scorers: Mapping[str, Path] = dataclasses.field(default_factory=dict)


class Extractor:
    """Takes groups of arrays from videos. `missing`: array -> why no video has it, known once `take` has run."""

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self.missing: dict[str, str] = {}
        for name, path, array, option, file in (
            ("Inception-v3", networks.inception, "inception_ND", "--inception", INCEPTION_FILE),
            ("I3D", networks.i3d, "i3d_ND", "--i3d", I3D_FILE),
            ("SyncNet", networks.syncnet, "sync_3", "--syncnet", SYNCNET_FILE),
        ):
            if path is None:
                self.missing[array] = f"needs {name}'s weights, {file} as safetensors: {option} FILE; {_HOW}"
        for name in SCORERS:
            if name not in networks.scorers:
                self.missing[f"score_{name}"] = f"needs its network: --scorer '{name}=FILE.py'; docs/evaluation.md"
        self._groups: dict[str, tuple[str, Callable[[_Video], dict[str, np.ndarray]]]] = {
            "sound": ("", _sound),
            "mesh": ("", _mesh),
            "body": ("", _body),
            "identity": ("", self._identity),
        }
        for group, path, take in (
            ("inception", networks.inception, self._inception),
            ("i3d", networks.i3d, self._i3d),
            ("sync", networks.syncnet, self._sync),
        ):
            if path is not None:
                self._groups[group] = (files.file_sha256(path), take)
        for name, path in networks.scorers.items():
            self._groups[f"score_{name}"] = (files.file_sha256(path), functools.partial(_score, name, path))

    def take(self, path: Path, folder: Path) -> dict[str, np.ndarray]:
        """All arrays of the video at `path`; kept in `folder`, one file a group.

        ValueError, FileNotFoundError: the video, or a network's file, cannot be read.
        """
        video, arrays, digest = _Video(path), dict[str, np.ndarray](), files.file_sha256(path)
        for group, (network, take) in self._groups.items():
            if _ARRAYS.get(group, group) in self.missing:
                continue
            key = json.dumps({"version": VERSION, "video": digest, "network": network, "group": group})
            kept = folder / f"{group.replace(' ', '_')}.npz"
            found = _kept(kept, key)
            if found is None:
                try:
                    found = take(video)
                except ImportError as error:
                    self.missing[_ARRAYS.get(group, group)] = str(error)
                    continue
                _keep(kept, key, found)
            arrays |= found
        return arrays

    def _identity(self, video: "_Video") -> dict[str, np.ndarray]:
        return {"identity_N128": self._faces.vectors(video.enlarged, video.mesh)}

    @functools.cached_property
    def _faces(self) -> FaceIdentity:
        return FaceIdentity()

    @functools.cached_property
    def _inception_network(self) -> Any:
        assert self.networks.inception is not None
        return inception.load_inception(self.networks.inception), jax.jit(inception.features)

    def _inception(self, video: "_Video") -> dict[str, np.ndarray]:
        params, features = self._inception_network
        shown = video.frames[::FRAME_STEP]
        return {"inception_ND": np.concatenate([np.asarray(features(params, frame[None])) for frame in shown])}

    @functools.cached_property
    def _i3d_network(self) -> Any:
        assert self.networks.i3d is not None
        return i3d.load_i3d(self.networks.i3d), jax.jit(i3d.features)

    def _i3d(self, video: "_Video") -> dict[str, np.ndarray]:
        params, features = self._i3d_network
        found = [np.asarray(features(params, clip[None])) for clip in i3d.clips(video.frames)]
        return {"i3d_ND": np.concatenate(found) if found else np.zeros((0, i3d.LOGITS), np.float32)}

    @functools.cached_property
    def _sync_network(self) -> syncnet.SyncNet:
        assert self.networks.syncnet is not None
        return syncnet.load_syncnet(self.networks.syncnet)

    def _sync(self, video: "_Video") -> dict[str, np.ndarray]:
        faces = face_crop.crop_faces(video.enlarged, video.mesh, sync_offsets.SIZE)
        if video.wave is None or faces is None or len(faces) <= sync_offsets.FRAMES:
            return {}
        found = syncnet.measure_sync(self._sync_network, faces, video.wave)
        return {"sync_3": np.array([found.confidence, found.distance, found.offset])}


class _Video:
    """A file's frames, sound and face, each read when it is first asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @functools.cached_property
    def frames(self) -> np.ndarray:
        return media_omnihuman.read_video(self.path)

    @functools.cached_property
    def enlarged(self) -> np.ndarray:
        """By a whole factor, so that the smaller side has 256 pixels or more."""
        from PIL import Image

        height, width = self.frames.shape[1:3]
        factor = -(-_LANDMARK_SIDE // min(height, width))
        if factor <= 1:
            return self.frames
        size = (factor * width, factor * height)
        return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BICUBIC)) for f in self.frames])

    @functools.cached_property
    def wave(self) -> np.ndarray | None:
        wave = media_omnihuman.read_audio(self.path, SAMPLE_RATE_HZ)
        return None if wave is None else wave[: len(self.frames) * SAMPLE_RATE_HZ // FPS]

    @functools.cached_property
    def mesh(self) -> np.ndarray:
        # Curation's networks are an extra.
        from data_pipelines.curate.face_mesh import extract_meshes

        return extract_meshes(self.enlarged)


def _sound(video: _Video) -> dict[str, np.ndarray]:
    if video.wave is None:
        return {}
    count = len(video.frames)
    return {
        "loudness_T": loudness.loudness(video.wave, count),
        "silent_T": loudness.silent_frames(video.wave, count),
    }


def _mesh(video: _Video) -> dict[str, np.ndarray]:
    return {"mesh_TK3": video.mesh}


def _body(video: _Video) -> dict[str, np.ndarray]:
    from data_pipelines.curate.landmarks import extract_landmarks

    return {
        "keypoints_TJ3": extract_landmarks(video.enlarged, faces=False).keypoints_TJ3,
        "height": np.array(video.enlarged.shape[1]),
    }


def _score(name: str, path: Path, video: _Video) -> dict[str, np.ndarray]:
    return {f"score_{name}": np.array(load_scorer(name, path)(video.frames), np.float64)}


@functools.cache
def load_scorer(name: str, path: Path) -> Callable[[np.ndarray], float]:
    """The function `score(frames uint8 [T, H, W, 3]) -> float` of a Python file, which is run: name your own alone.

    FileNotFoundError, ValueError: no such file, or none with that function.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--scorer {name}={path}: no such file")
    spec = importlib.util.spec_from_file_location(f"scorer_{abs(hash(path))}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--scorer {name}={path}: give a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    score: Any = getattr(module, "score", None)
    if not callable(score):
        raise ValueError(f"--scorer {name}={path}: it has no function score(frames)")
    return lambda frames: float(score(frames))


def _kept(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """What the file holds, if it was made of the same things."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            return {name: stored[name] for name in stored.files if name != "key"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None  # cut short: taken again


def _keep(path: Path, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, key=np.array(key), **arrays)
