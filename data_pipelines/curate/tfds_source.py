"""The videos of a data set of tensorflow-datasets: a feature `video` or `mp4` that holds the bytes of a video's file.

Its records must lie in ArrayRecord, which is read without TensorFlow. Nothing is unpacked: a video is a record of a
shard. A record may say its `caption` too, and the data set's splits are the clips' splits.
"""

import os
from pathlib import Path
from typing import Any

from data_pipelines.curate import bucket_source, captions, tfds_records, video_files
from data_pipelines.curate.found_videos import CaptionOptions, Found, FoundVideo, bad, version_of
from data_pipelines.curate.video_files import Address
from omnihuman_jax.data.example_wire import feature_bytes
from omnihuman_jax.runtime import bucket_copies, file_names, storage
from omnihuman_jax.runtime.locations import is_remote
from omnihuman_jax.serving.media_omnihuman import MediaError

PREFIX = "tfds:"
VIDEO_FEATURES, CAPTION_FEATURE = ("video", "mp4"), "caption"
_ARRAY_RECORD = "array_record"


def find(place: str, options: CaptionOptions) -> Found:
    """The videos of `tfds:DIR`, DIR the folder that holds dataset_info.json.

    Every record is read once, for its caption and size; one that cannot be read is a dead letter.

    Raises:
        FileNotFoundError: no data set there, or a shard is missing.
        ValueError: its records are not in ArrayRecord, or it has no feature that holds an encoded video.
    """
    info = _info(place)
    feature = _video_feature(place, info)
    videos: dict[str, FoundVideo] = {}
    for split in sorted(info.splits):
        for shard in info.splits[split].filepaths:
            videos |= _videos(split, os.fspath(shard), feature, options)
    return Found(dict(sorted(videos.items())), {})


def _info(place: str) -> Any:
    """tfds' DatasetInfo."""
    import tensorflow_datasets as tfds

    folder = place.removeprefix(PREFIX)
    try:
        info = tfds.builder_from_directory(folder).info
    except ModuleNotFoundError:
        raise ValueError(
            f"{place}: has features that want TensorFlow, as tfds.features.Video does, which holds decoded pictures"
            " without sound; store the bytes of the videos' files, as tfds.features.Text or a scalar tensor of bytes"
        ) from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileNotFoundError(
            f"{place}: no data set of tensorflow-datasets ({reason}); give the folder that holds dataset_info.json"
        ) from None
    written = getattr(info.file_format, "value", str(info.file_format))
    if written != _ARRAY_RECORD:
        raise ValueError(
            f"{place}: its records are in {written}, which wants TensorFlow; write the data set with"
            f" file_format='{_ARRAY_RECORD}'"
        )
    return info


def _video_feature(place: str, info: Any) -> str:
    """The name of the feature that holds a video's bytes."""
    import tensorflow_datasets as tfds

    features = dict(info.features) if isinstance(info.features, tfds.features.FeaturesDict) else {}
    for name in VIDEO_FEATURES:
        feature = features.get(name)
        if isinstance(feature, tfds.features.Tensor) and feature.shape == () and feature.np_dtype.kind in "OSU":
            return name
    raise ValueError(
        f"{place}: has no feature `video` or `mp4` of bytes, which would be the files of its videos; it has"
        f" {', '.join(sorted(features)) or 'none'}"
    )


def _videos(split: str, shard: str, feature: str, options: CaptionOptions) -> dict[str, FoundVideo]:
    """Name (split, shard, number of the record) -> video."""
    name = file_names.plain(f"{split}/{os.path.basename(shard)}")
    found: dict[str, FoundVideo] = {}
    try:
        version = _shard_version(shard)
        for number, record in enumerate(tfds_records.records(video_files.local_file(Address(place=shard)))):
            address = Address(place=shard, record=number, feature=feature)
            of_record = version_of(version, number)
            found[f"{name}/{number:06d}"] = _video(record, address, of_record, split, options)
    except (MediaError, OSError) as error:
        found[name] = bad(str(error) if isinstance(error, MediaError) else storage.cause(error))
    return found


def _video(
    record: bytes | MediaError, address: Address, version: int, split: str, options: CaptionOptions
) -> FoundVideo:
    try:
        if isinstance(record, MediaError):
            raise record
        video = feature_bytes(record, address.feature)
        caption = feature_bytes(record, CAPTION_FEATURE)
    except ValueError as error:
        return bad(str(error))
    told = _caption(f"the {CAPTION_FEATURE} of record {address.record}", caption, options)
    return FoundVideo(
        address=address,
        size=len(video or b""),
        version=version,
        caption=told[0],
        caption_source=told[1],
        caption_error=told[2],
        split=split,
    )


def _shard_version(shard: str) -> int:
    if not is_remote(shard):
        return Path(shard).stat().st_mtime_ns
    fs, path = bucket_copies.open_storage(shard)
    return bucket_source.object_version(fs.info(path))


def _caption(where: str, value: memoryview | None, options: CaptionOptions) -> tuple[str, str, str]:
    """(caption, where it comes from, why it cannot be read)."""
    try:
        data = None if value is None else bytes(value)
        return *captions.caption_in(where, data, options.default, options.encoding), ""
    except captions.CaptionError as error:
        return "", "", file_names.printable(str(error))
