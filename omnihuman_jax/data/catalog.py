"""Catalog: one small row a window, all that the plan knows about the data. Parquet on disk, numpy columns in memory."""

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np

from omnihuman_jax.conditions import NUM_CONDITIONS, Condition
from omnihuman_jax.runtime import files
from omnihuman_jax.runtime.locations import local
from omnihuman_jax.typing import PATCH, TEMPORAL_STRIDE

FILE_NAME = "catalog.parquet"
_EMPTY_TEXT_TOKENS = b"empty_text_tokens"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Catalog:
    """The windows of a dataset, a column a field [n].

    window_id, clip_id, split        str; `split` is "train" for the windows that the plan may draw
    record                           index in the records
    start_frame                      first frame of the window in its clip (25 fps)
    latent_frames, _height, _width   of the latents; height and width even
    height, width                    pixels
    text_tokens                      of the window's text, no padding
    num_references                   reference frames stored
    duration_s                       the share of the draws: windows are drawn uniformly by hours
    eligible                         bits of `ConditionSet`
    empty_text_tokens                tokens of the empty prompt (one number): what an inactive text occupies
    """

    window_id: np.ndarray
    clip_id: np.ndarray
    split: np.ndarray
    record: np.ndarray
    start_frame: np.ndarray
    latent_frames: np.ndarray
    latent_height: np.ndarray
    latent_width: np.ndarray
    height: np.ndarray
    width: np.ndarray
    text_tokens: np.ndarray
    num_references: np.ndarray
    duration_s: np.ndarray
    eligible: np.ndarray
    empty_text_tokens: int = 1

    def __post_init__(self) -> None:
        for name in columns():
            kind = object if name in _STRINGS else np.float64 if name == "duration_s" else np.int32
            given = np.asarray(getattr(self, name))
            if given.dtype.kind == "f" and kind is np.int32 and not (given == np.rint(given)).all():
                row = int((given != np.rint(given)).argmax())  # NaN among them
                raise ValueError(f"catalog: {name} of row {row} is {given[row]}, not a whole number")
            column = np.ascontiguousarray(given, kind)
            if column.shape != (len(self.window_id),):
                raise ValueError(
                    f"catalog: column {name} has shape {column.shape}, window_id {len(self.window_id)} rows"
                )
            column.setflags(write=False)
            object.__setattr__(self, name, column)
        self._check()

    def _check(self) -> None:
        if self.empty_text_tokens < 1:
            raise ValueError(f"catalog: the empty prompt has {self.empty_text_tokens} tokens; it must have at least 1")
        has_reference = self.eligible >> Condition.REFERENCE & 1 > 0
        broken = {
            "latent_frames < 1": self.latent_frames < 1,
            "latent size odd or < 2": (self.latent_height < 2) | (self.latent_width < 2)
            | (self.latent_height % PATCH > 0) | (self.latent_width % PATCH > 0),
            "duration_s not positive and finite": ~((self.duration_s > 0) & np.isfinite(self.duration_s)),
            "eligible bits outside the conditions": (self.eligible < 0) | (self.eligible >= 1 << NUM_CONDITIONS),
            "eligible for reference, but no reference stored": has_reference & (self.num_references < 1),
            "text_tokens < 1": self.text_tokens < 1,
            "record, start_frame or num_references < 0": (self.record < 0) | (self.start_frame < 0)
            | (self.num_references < 0),
        }  # fmt: skip
        for what, rows in broken.items():
            if rows.any():
                raise ValueError(
                    f"catalog: {what} in {rows.sum()} windows, the first is {self.window_id[rows.argmax()]}"
                )

    def __len__(self) -> int:
        return len(self.window_id)

    @property
    def frames(self) -> np.ndarray:
        """Pixel frames of a window: 1 + 4n."""
        return 1 + TEMPORAL_STRIDE * (self.latent_frames - 1)

    @property
    def reference_tokens(self) -> np.ndarray:
        """Patch tokens of one reference, which are also those of one latent frame."""
        return (self.latent_height // PATCH) * (self.latent_width // PATCH)

    @property
    def window_tokens(self) -> np.ndarray:
        """Patch tokens of the video of a window, its reference not counted."""
        return self.latent_frames * self.reference_tokens

    def select(self, rows: np.ndarray) -> "Catalog":
        """The catalog of these rows (mask or indices)."""
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in columns()})

    def fingerprint(self) -> str:
        """sha256 over everything that the plan can depend on."""
        digest = hashlib.sha256(f"{len(self)} {self.empty_text_tokens}".encode())
        for name in columns():
            column = getattr(self, name)
            digest.update("\0".join(column).encode() if name in _STRINGS else column.tobytes())
        return digest.hexdigest()

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Writes `catalog.parquet`, whole or not at all."""
        import pyarrow
        import pyarrow.parquet

        path = local(directory, "the dataset's folder") / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pyarrow.table({name: pyarrow.array(getattr(self, name)) for name in columns()})
        table = table.replace_schema_metadata({_EMPTY_TEXT_TOKENS: str(self.empty_text_tokens).encode()})
        with files.whole_file(path) as temporary:
            pyarrow.parquet.write_table(table, temporary)
        return path

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "Catalog":
        """The catalog in `directory`; an error names the file, what is missing and the cure."""
        import pyarrow.parquet

        path = local(directory, "the dataset's folder") / FILE_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no catalog here; make one with `omnihuman encode SETS --out {directory}`")
        try:
            table = pyarrow.parquet.read_table(path)
        except pyarrow.ArrowException as error:
            raise ValueError(f"{path}: not a readable Parquet file ({error}); run `omnihuman encode` again") from None
        if missing := [name for name in columns() if name not in table.column_names]:
            raise ValueError(f"{path}: columns {', '.join(missing)} are missing; run `omnihuman encode` again")
        metadata = table.schema.metadata or {}
        if _EMPTY_TEXT_TOKENS not in metadata:
            raise ValueError(f"{path}: no empty_text_tokens in the metadata; run `omnihuman encode` again")
        arrays = {name: table[name].to_numpy() for name in columns()}
        return cls(**arrays, empty_text_tokens=int(metadata[_EMPTY_TEXT_TOKENS]))


_STRINGS = ("window_id", "clip_id", "split")


def columns() -> tuple[str, ...]:
    """Names of the columns, in the file's order."""
    return tuple(field.name for field in dataclasses.fields(Catalog) if field.name != "empty_text_tokens")
