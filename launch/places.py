"""Where a run's data lies: what the trainer reads and writes has to be there for it, and there again after a restart.

A restart finds on volumes and shared file systems what an earlier attempt left, never inside a container.
"""

import posixpath
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from launch import pod
from launch.spec import RunSpec
from launch.target import Target
from omnihuman_jax.runtime import locations

if TYPE_CHECKING:
    from omnihuman_jax.config import ExperimentConfig

# Schemes of URIs that the trainer itself reads or writes (docs/storage.md): Orbax takes no s3://.
CHECKPOINTS, DATASET, OUTPUT = "checkpoints", "data.dataset", "output"
SCHEMES: Mapping[str, tuple[str, ...]] = {
    CHECKPOINTS: locations.CHECKPOINT_SCHEMES,
    DATASET: tuple(locations.PACKAGES),
    OUTPUT: locations.CHECKPOINT_SCHEMES,
}
_NO_BUCKET = {
    OUTPUT: ", or gs://BUCKET/FOLDER",
    DATASET: ", or the URI of a bucket",
}


def check(spec: RunSpec, target: Target, config: "ExperimentConfig") -> None:
    """ValueError on a place that is no path or URI, or that the trainer would not find.

    Args:
        spec: the run.
        target: not this machine.
        config: with all overrides: its checkpoints (empty: in the output) and its datasets.
    """
    homes = target.homes(spec)
    for field, place, kind in _places(spec, config):
        if _is_uri(field, place, kind, target):
            continue
        if homes is not None:
            _check_home(field, place, kind, homes, target)


def _places(spec: RunSpec, config: "ExperimentConfig") -> list[tuple[str, str, str]]:
    """(field, place, what it is) of everything that the trainer opens."""
    rows = [("output", spec.output, OUTPUT)]
    if directory := config.checkpoint.directory:
        own = (
            "overrides.checkpoint.directory"
            if "checkpoint.directory" in spec.overrides
            else f"checkpoint.directory of {spec.config}"
        )
        rows.append(("checkpoints" if spec.checkpoints else own, directory, CHECKPOINTS))
    if dataset := config.data.dataset:
        own = "overrides.data.dataset" if "data.dataset" in spec.overrides else f"data.dataset of {spec.config}"
        rows.append((own, dataset, DATASET))
    for number, row in enumerate(config.data.datasets):
        rows.append((f"data.datasets[{number}].path of {spec.config}", row.path, DATASET))
    return rows


def _is_uri(field: str, place: str, kind: str, target: Target) -> bool:
    """Whether it is a bucket's, which needs no volume; ValueError if it is neither a URI nor an absolute path.

    What a URI is, `locations` says; of checkpoints the config has asked it already.
    """
    scheme = locations.scheme(place)
    if scheme and scheme not in SCHEMES[kind]:
        hint = _NO_BUCKET.get(kind, "")
        raise ValueError(f"{field} {place!r}: it must be an absolute path with --target {target.name}{hint}")
    if scheme:
        if not re.fullmatch(r"[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9](/.*)?", place.removeprefix(f"{scheme}://")):
            raise ValueError(f"{field} {place!r} names no bucket: {scheme}://BUCKET/FOLDER, lower case")
        return True
    if not place.startswith("/"):
        raise ValueError(f"{field} {place!r} must be an absolute path with --target {target.name}")
    return False


def _check_home(field: str, place: str, kind: str, homes: Mapping[str, str], target: Target) -> None:
    lasting = f"{target.homes_field} ({', '.join(home for home, why in homes.items() if not why) or 'there are none'})"
    path = PurePosixPath(posixpath.normpath(place))
    around = [home for home in homes if path.is_relative_to(home)]
    if kind == DATASET:
        if not around:
            there = f"{target.homes_field} ({', '.join(homes) or 'there are none'})"
            raise ValueError(f"{field} {place!r} is on none of {there}, so the trainer would not see it; mount it")
        return
    if not around:
        raise ValueError(
            f"{field} {place!r} is on none of {lasting}, so a restart would not find it; put it on one of them"
        )
    if reason := homes[max(around, key=lambda home: len(PurePosixPath(home).parts))]:
        raise ValueError(
            f"{field} {place!r} is on {reason}, so a restart would not find it; put it on one of {lasting}"
        )


def warnings(spec: RunSpec, config: "ExperimentConfig") -> list[str]:
    """Checkpoints on a bucket's mount: Orbax ends a save by renaming a folder there, which flat buckets refuse."""
    place = PurePosixPath(posixpath.normpath(config.checkpoint.directory or f"{spec.output}/checkpoints"))
    around = [volume for volume in spec.volumes if place.is_relative_to(volume.mount)]
    nearest = max(around, key=lambda volume: len(PurePosixPath(volume.mount).parts), default=None)
    if nearest is None or not pod.on_fuse(nearest.source):
        return []
    return [
        f"checkpoints are on {nearest.mount}, a bucket by GCS FUSE: a save ends by renaming a folder, which a bucket"
        " without hierarchical namespace refuses; give checkpoints a gs:// URI"
    ]
