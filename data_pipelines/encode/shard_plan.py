"""Which clips make which shard: consecutive ones, as many as fill it. Known from the sets alone, before anything is
opened, and written once, so that all who encode agree. A shard has the digest of its clips' keys: sets that were
selected anew meanwhile would have others in their place.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data_pipelines.encode.clip_encoder import WindowConfig, windows_of
from data_pipelines.encode.encoded_clips import KeyedClip
from omnihuman_jax.runtime.locations import Location
from omnihuman_jax.serving.pictures_omnihuman import fit_size
from omnihuman_jax.typing import SPATIAL_STRIDE, latent_frames_of

PLAN_FILE, MADE_BY_FILE = "plan.json", "made_by.json"
# Of the windows whose round trip is measured, at least; a small data set's are all.
_ROUND_TRIPS = 1000
_ROUND_TRIP_SHARE = 0.01


@dataclasses.dataclass(frozen=True, slots=True)
class ShardTask:
    """Clips `first` .. `last` - 1 of part `part` of the sets, how many windows they have, and `keys_digest` of them."""

    number: int
    part: int
    first: int
    last: int
    windows: int
    keys_sha256: str


def keys_digest(clips: Sequence[KeyedClip]) -> str:
    """sha256 of the keys of clips, in hex."""
    return hashlib.sha256("".join(one.key for one in clips).encode()).hexdigest()


def plan_shards(
    clips_by_part: Iterable[Sequence[KeyedClip]], config: WindowConfig, channels: int, shard_bytes: float
) -> list[ShardTask]:
    """The shards of a data set. Latents and references are counted: texts and sounds, whose sizes are not known before
    they are made, come on top (a third of a record of 13 B with 128 tokens of text and 33 frames at 480p).
    """
    tasks: list[ShardTask] = []
    for part, clips in enumerate(clips_by_part):
        tasks += _of_part(part, clips, config, channels, shard_bytes, len(tasks))
    return tasks


def _of_part(
    part: int, clips: Sequence[KeyedClip], config: WindowConfig, channels: int, shard_bytes: float, number: int
) -> Iterator[ShardTask]:
    first = windows = size = 0
    for index, (clip, _) in enumerate(clips, 1):
        own = windows_of(clip, config)
        height, width = fit_size(clip.height, clip.width, config.area)
        latent = 2 * channels * (height // SPATIAL_STRIDE) * (width // SPATIAL_STRIDE)
        windows += len(own)
        size += latent * sum(latent_frames_of(window.frames) + config.references for window in own)
        if size >= shard_bytes or (index == len(clips) and windows):
            yield ShardTask(number, part, first, index, windows, keys_digest(clips[first:index]))
            first, windows, size, number = index, 0, 0, number + 1


def round_trip_share(tasks: Sequence[ShardTask]) -> float:
    """Of the windows that are decoded again: 1 %, or a thousand if that is more."""
    return max(_ROUND_TRIP_SHARE, min(1.0, _ROUND_TRIPS / max(1, sum(task.windows for task in tasks))))


def write_plan(path: Path, tasks: Sequence[ShardTask]) -> None:
    path.write_text(json.dumps([dataclasses.astuple(task) for task in tasks]))


def read_plan(folder: Location) -> list[ShardTask]:
    """The shards that are being made in `folder`; ValueError for a file that is no plan."""
    path = folder / PLAN_FILE
    try:
        return [ShardTask(*row) for row in json.loads(path.read_text())]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: not there; run `omnihuman encode` without --finish first") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a plan of shards ({error}); delete {folder} and encode again") from None


def plan_id(folder: Location) -> str:
    """Of the plan in `folder` and all that its shards are made by, in hex: of another one no shard counts."""
    return hashlib.sha256((folder / MADE_BY_FILE).read_bytes() + (folder / PLAN_FILE).read_bytes()).hexdigest()
