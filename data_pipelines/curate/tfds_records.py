"""Videos that are records of ArrayRecord shards: the bytes of one feature of a tf.train.Example, read in place."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omnihuman_jax.data.example_wire import feature_bytes
from omnihuman_jax.serving.media_omnihuman import MediaError

# No thread of its own that reads ahead: records are asked for one at a time.
_OPTIONS = "readahead_buffer_size:0"


def read_feature(shard: Path, number: int, feature: str) -> bytes:
    """What `feature` holds in record `number` of a shard.

    Raises:
        FileNotFoundError, OSError: the shard is not there, or may not be read.
        MediaError: the shard or the record is damaged, or has no such feature.
    """
    with _reader(shard) as reader:
        value = feature_bytes(_record(reader, shard, number), feature)
    if not value:
        raise MediaError(f"its record has nothing in the feature {feature}")
    return bytes(value)


def records(shard: Path) -> Iterator[bytes | MediaError]:
    """Each record of a shard, or why it cannot be read; MediaError where the whole shard cannot."""
    with _reader(shard) as reader:
        for number in range(reader.num_records()):
            try:
                yield _record(reader, shard, number)
            except MediaError as error:
                yield error


@contextlib.contextmanager
def _reader(shard: Path) -> Iterator[Any]:
    from array_record.python.array_record_module import ArrayRecordReader

    shard.open("rb").close()  # what the system says of a file that is not there is clearer than what the reader does
    try:
        reader = ArrayRecordReader(str(shard), _OPTIONS)
        try:
            yield reader
        finally:
            reader.close()  # tells what is wrong with the end of the file too
    except (RuntimeError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"{shard.name} is no ArrayRecord, or is cut ({_line(error)}); copy it again") from error


def _record(reader: Any, shard: Path, number: int) -> bytes:
    try:
        return bytes(reader.read([number])[0])
    except (RuntimeError, IndexError, ValueError) as error:
        raise MediaError(f"record {number} of {shard.name} is damaged ({_line(error)}); copy it again") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
