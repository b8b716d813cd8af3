"""Records: the one contract between the offline encoders and the online pipeline.

A dataset is a folder: ArrayRecord shards that tensorflow-datasets reads (a record a window), `catalog/` (a row a
window, see `catalog.py`), and `dataset.json` + `dataset.npz` (which encoders made it, and what they give for the empty
prompt).
"""

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnihuman_jax.data.dataset_files import dataset_folder
from omnihuman_jax.data.example_wire import parse_example
from omnihuman_jax.data.finite import not_finite
from omnihuman_jax.runtime import files, folders
from omnihuman_jax.runtime.locations import local, location
from omnihuman_jax.typing import FPS, SAMPLE_RATE_HZ, latent_frames_of

logger = logging.getLogger(__name__)

DATASET_NAME = "windows"
SPLIT = "train"  # of the files; which windows are trained on is a column of the catalog
VERSION = "1.0.0"
DESCRIPTION = ("dataset_info.json", "features.json")  # of the records, as tensorflow-datasets wants it
SHARD_OPTIONS = "group_size:1,uncompressed"  # random access at disk speed; latents do not compress (8 %)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DatasetSpec:
    """What made a dataset and how wide its arrays are; `dataset.json` and `dataset.npz` beside the data.

    codec, text_encoder, speech_encoder: name, folder or hub id that loads them again; "" for none.
    codec_options: what the codec was loaded with besides, such as its tiles.
    speech_layers: hidden layers kept, flattened layer after layer into `audio_width` columns.
    margin: frames of real audio features and keypoints stored on each side of a window.
    empty_text_SE [S, text_width], empty_pooled_E [pooled_width]: the empty prompt, as the text encoder embeds it.
    max_text_tokens: that prompts were cut to. 128 in data sets that do not say it.
    encoder_sha256: codec/, text_encoder/ or speech_encoder/ and a file name -> sha256 of the weights and of what
        describes them.
    records_sha256: of the shards' digests, each of the bytes of its records; "" in data sets that do not say it.
    """

    codec: str
    latent_channels: int
    text_encoder: str
    text_width: int
    pooled_width: int
    speech_encoder: str
    speech_layers: tuple[int, ...]
    speech_width: int
    keypoint_names: tuple[str, ...]
    margin: int
    empty_text_SE: np.ndarray
    empty_pooled_E: np.ndarray
    fps: int = FPS
    sample_rate_hz: int = SAMPLE_RATE_HZ
    codec_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    encoder_sha256: Mapping[str, str] = dataclasses.field(default_factory=dict)
    max_text_tokens: int = 128
    records_sha256: str = ""

    def __post_init__(self) -> None:
        if (
            self.empty_text_SE.ndim != 2
            or self.empty_text_SE.shape[1] != self.text_width
            or not len(self.empty_text_SE)
        ):
            raise ValueError(f"empty_text_SE {self.empty_text_SE.shape}: expected [at least 1, {self.text_width}]")
        if self.empty_pooled_E.shape != (self.pooled_width,):
            raise ValueError(f"empty_pooled_E {self.empty_pooled_E.shape}: expected ({self.pooled_width},)")
        for name in ("empty_text_SE", "empty_pooled_E"):
            if wrong := not_finite(getattr(self, name)):
                raise ValueError(f"{name} is {wrong}: the text encoder gives no numbers for the empty prompt")

    @property
    def audio_width(self) -> int:
        """Columns of a record's audio features: layers x width."""
        return len(self.speech_layers) * self.speech_width

    @property
    def num_keypoints(self) -> int:
        return len(self.keypoint_names)

    @property
    def empty_text_tokens(self) -> int:
        return len(self.empty_text_SE)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes `dataset.npz`, then `dataset.json`, each whole: the json is there only if all of it is."""
        directory = location(directory)
        folders.make_folder(directory)
        arrays = {"empty_text_SE": self.empty_text_SE, "empty_pooled_E": self.empty_pooled_E}
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in arrays}
        with files.whole_file(directory / "dataset.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        files.write_text(directory / "dataset.json", json.dumps(fields, indent=2, default=dict) + "\n")

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "DatasetSpec":
        """The spec of the dataset in `directory`; FileNotFoundError with the cure if there is none."""
        path = dataset_folder(directory) / "dataset.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no dataset here; make one with `omnihuman encode SETS --out {directory}`")
        fields = json.loads(path.read_text())
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise ValueError(f"{path}: unknown fields {', '.join(unknown)}; encode again with this version")
        fields |= {name: tuple(fields[name]) for name in ("speech_layers", "keypoint_names")}
        with np.load(path.parent / "dataset.npz") as arrays:
            return cls(**fields, **{name: arrays[name] for name in ("empty_text_SE", "empty_pooled_E")})


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class WindowRecord:
    """One window, encoded (contract, "Windows and latents"). Floats are float16; T' = frames + 2 * margin of the
    dataset.

    latents_FHWC            normalised latents of the window, H and W even
    references_RHWC         frames of the same clip outside the window, each encoded as an image; R may be 0
    text_SE, pooled_E       embedding of `text`: real tokens only, no padding
    audio_TE                [T', layers * width] speech features, or [0, layers * width] without sound
    audio_valid_T           bool [T'] (or [0]): rows that real sound stands behind
    keypoints_TJ3           [T', J, 3] x, y (token units: pixels of the window / 16) and confidence, or [0, J, 3]
    keypoints_valid_T       bool [T'] (or [0]): rows of frames that exist in the clip
    eligible                bits of `ConditionSet`
    """

    window_id: str
    clip_id: str
    video: str
    frames: int
    eligible: int
    latents_FHWC: np.ndarray
    references_RHWC: np.ndarray
    text: str
    text_SE: np.ndarray
    pooled_E: np.ndarray
    audio_TE: np.ndarray
    audio_valid_T: np.ndarray
    keypoints_TJ3: np.ndarray
    keypoints_valid_T: np.ndarray

    def validate(self, spec: DatasetSpec) -> None:
        """ValueError naming the window and the array that does not match the dataset's spec."""
        _, height, width, channels = self.latents_FHWC.shape
        rows = self.frames + 2 * spec.margin
        expected: dict[str, Sequence[tuple[int, ...]]] = {
            "latents_FHWC": [(latent_frames_of(self.frames), height, width, spec.latent_channels)],
            "references_RHWC": [(len(self.references_RHWC), height, width, channels)],
            "text_SE": [(len(self.text_SE), spec.text_width)],
            "pooled_E": [(spec.pooled_width,)],
            "audio_TE": [(n, spec.audio_width) for n in (0, rows)],
            "audio_valid_T": [(len(self.audio_TE),)],
            "keypoints_TJ3": [(n, spec.num_keypoints, 3) for n in (0, rows)],
            "keypoints_valid_T": [(len(self.keypoints_TJ3),)],
        }
        for name, shapes in expected.items():
            shape = getattr(self, name).shape
            if shape not in shapes:
                raise ValueError(f"window {self.window_id}: {name} {shape}, expected {' or '.join(map(str, shapes))}")
        if height % 2 or width % 2:
            raise ValueError(
                f"window {self.window_id}: latents of {height} x {width}; pixel sizes must be multiples of 16"
            )

    def check_finite(self) -> None:
        """ValueError with the window, the array and the place of the first value that is NaN or infinite.

        Before a record is written: what is stored is trained on, and a step that is not finite is lost for all windows
        in it.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray) and (wrong := not_finite(value)):
                raise ValueError(f"window {self.window_id}: {field.name} is {wrong}; every value must be finite")


def features(spec: DatasetSpec) -> Any:
    """The tfds FeaturesDict of a record. Everything is raw bytes with at most one unknown dim: tfds stores float16 as
    varints otherwise, and misreads an empty array with two unknown dims."""
    import tensorflow_datasets as tfds

    def rows(width: int, dtype: type = np.float16) -> Any:
        return tfds.features.Tensor(shape=(None, width), dtype=dtype, encoding="bytes")

    def vector(size: int | None, dtype: type) -> Any:
        return tfds.features.Tensor(shape=(size,), dtype=dtype, encoding="bytes")

    return tfds.features.FeaturesDict(
        {
            **{name: tfds.features.Text() for name in ("window_id", "clip_id", "video", "text")},
            "frames": np.int32,
            "eligible": np.int32,
            "latents": rows(spec.latent_channels),
            "latents_shape": vector(3, np.int32),
            "references": rows(spec.latent_channels),
            "text_tokens": rows(spec.text_width),
            # A zero-width tensor cannot be told from a missing one, hence the unknown dim.
            "pooled": vector(None, np.float16),
            "audio": rows(max(1, spec.audio_width)),
            "audio_valid": vector(None, np.uint8),
            "keypoints": rows(max(1, 3 * spec.num_keypoints)),
            "keypoints_valid": vector(None, np.uint8),
        }
    )


def to_example(record: WindowRecord) -> dict[str, Any]:
    """The flat example that `features` describes."""
    channels = record.latents_FHWC.shape[-1]

    def rows(array: np.ndarray) -> np.ndarray:
        width = int(np.prod(array.shape[1:]))
        return (
            np.ascontiguousarray(array, np.float16).reshape(len(array), width)
            if width
            else np.zeros((0, 1), np.float16)
        )

    return {
        **{name: getattr(record, name) for name in ("window_id", "clip_id", "video", "text")},
        "frames": record.frames,
        "eligible": record.eligible,
        "latents": np.ascontiguousarray(record.latents_FHWC, np.float16).reshape(-1, channels),
        "latents_shape": np.asarray(record.latents_FHWC.shape[:3], np.int32),
        "references": np.ascontiguousarray(record.references_RHWC, np.float16).reshape(-1, channels),
        "text_tokens": np.ascontiguousarray(record.text_SE, np.float16),
        "pooled": np.ascontiguousarray(record.pooled_E, np.float16),
        "audio": rows(record.audio_TE),
        "audio_valid": np.ascontiguousarray(record.audio_valid_T, np.uint8),
        "keypoints": rows(record.keypoints_TJ3),
        "keypoints_valid": np.ascontiguousarray(record.keypoints_valid_T, np.uint8),
    }


def encode_record(record: WindowRecord, spec: DatasetSpec, serializer: Any = None) -> bytes:
    """The bytes of a record; ValueError if it does not fit the spec. `serializer` saves building `features(spec)`
    again.
    """
    record.validate(spec)
    return (serializer or features(spec)).serialize_example(to_example(record))


def decode_record(data: bytes, spec: DatasetSpec) -> WindowRecord:
    """The window of a record's bytes; its arrays are read-only views of them. ValueError where the bytes are no record
    of this dataset.
    """
    example = parse_example(data)

    def number(name: str) -> int:
        if not isinstance(value := example[name], int):
            raise ValueError(f"{name} is no number")
        return value

    def view(name: str) -> memoryview:
        if isinstance(value := example.get(name, memoryview(b"")), int):
            raise ValueError(f"{name} is a number")
        return value

    def array(name: str, dtype: type, *shape: int) -> np.ndarray:
        return np.frombuffer(view(name), dtype).reshape(shape)

    def string(name: str) -> str:
        return str(view(name), "utf-8")

    try:
        frames, height, width = (int(n) for n in array("latents_shape", np.int32, 3))
        size = (height, width, spec.latent_channels)
        audio_valid = array("audio_valid", np.uint8, -1).astype(bool)
        keypoints_valid = array("keypoints_valid", np.uint8, -1).astype(bool)
        return WindowRecord(
            window_id=string("window_id"),
            clip_id=string("clip_id"),
            video=string("video"),
            text=string("text"),
            frames=number("frames"),
            eligible=number("eligible"),
            latents_FHWC=array("latents", np.float16, frames, *size),
            references_RHWC=array("references", np.float16, -1, *size),
            text_SE=array("text_tokens", np.float16, -1, spec.text_width),
            pooled_E=array("pooled", np.float16, -1),
            audio_TE=array("audio", np.float16, len(audio_valid), spec.audio_width),
            audio_valid_T=audio_valid,
            keypoints_TJ3=array("keypoints", np.float16, len(keypoints_valid), spec.num_keypoints, 3),
            keypoints_valid_T=keypoints_valid,
        )
    except KeyError as error:
        raise ValueError(f"not a record of a window: {error} is missing") from None


def shard_path(directory: str | os.PathLike[str], shard: int, num_shards: int) -> Path:
    """Where shard `shard` of `num_shards` lies. Record indices run through the shards in order."""
    return local(directory) / f"{DATASET_NAME}-{SPLIT}.array_record-{shard:05d}-of-{num_shards:05d}"


def write_shard(
    path: str | os.PathLike[str],
    records: Iterable[WindowRecord],
    spec: DatasetSpec,
    on_record: Callable[[bytes], None] = lambda data: None,
    on_whole: Callable[[Path], None] = lambda file: None,
) -> tuple[int, int]:
    """Writes one shard, streaming, whole or not at all: (records, bytes). A retry overwrites. `on_record` gets the
    bytes of each, `on_whole` the file when it is whole: of a bucket's shard it is there for that long alone.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    path = location(path)
    folders.make_folder(path.parent)
    serializer = features(spec)
    count = size = 0
    with files.locked_whole_file(path) as temporary:
        writer = ArrayRecordWriter(str(temporary), SHARD_OPTIONS)
        try:
            for record in records:
                data = encode_record(record, spec, serializer)
                writer.write(data)
                on_record(data)
                count, size = count + 1, size + len(data)
        finally:
            writer.close()
        if not count:
            raise ValueError(f"{path}: no windows to write; a shard needs at least one")
        on_whole(Path(temporary))
    return count, size


def write_dataset_metadata(
    directory: str | os.PathLike[str], spec: DatasetSpec, shards: Sequence[tuple[int, int]]
) -> None:
    """What tfds needs to read the shards back, then the spec. `shards`: (records, bytes) of each shard, in order."""
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=str(directory), dataset_name=DATASET_NAME, split=SPLIT, filetype_suffix="array_record"
    )
    split = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=[n for n, _ in shards],
        num_bytes=sum(b for _, b in shards),
        filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
        data_dir=str(directory), features=features(spec), split_infos=[split], check_data=False, version=VERSION
    )
    spec.save(directory)
