"""Reads a serialised tf.train.Example in place: what a feature holds is a view of the record's bytes, not a copy.

The messages are Example { Features = 1 }, Features { map entry = 1 }, entry { name = 1, Feature = 2 }, Feature {
BytesList = 1 | FloatList = 2 | Int64List = 3 }, each list { value = 1 } (tensorflow/core/example/*.proto). Records stay
readable by tensorflow-datasets, which writes them.

Places in the bytes are passed around instead of views of them: parsing is a good part of what reading a record costs.
"""

from collections.abc import Iterator

_VARINT, _BYTES = 0, 2  # wire types
_BYTES_LIST, _INT_LIST = 1, 3  # fields of a Feature


def parse_example(data: bytes) -> dict[str, memoryview | int]:
    """Feature name -> its one value: a view of bytes, or an int; features without a value are left out.

    ValueError where the bytes are no such message, or a feature holds floats or more than one value.
    """
    result: dict[str, memoryview | int] = {}
    for name, begin, end in _features(data):
        value = _value(data, begin, end)
        if value is not None:
            result[name] = value
    return result


def feature_bytes(data: bytes, name: str) -> memoryview | None:
    """The bytes of the feature `name`, whatever the others hold; None if it is not there or has no value.

    ValueError where the bytes are no tf.train.Example, as far as they are read for it, or the feature holds numbers or
    more than one value.
    """
    for found, begin, end in _features(data):
        if found == name:
            value = _value(data, begin, end)
            if isinstance(value, int):
                raise ValueError(f"the feature {name} holds a number")
            return value
    return None


def _features(data: bytes) -> Iterator[tuple[str, int, int]]:
    """(name, begin, end) of each feature."""
    features_end = 0
    while features_end < len(data):
        entry_end, features_end = _bytes_field(data, features_end, len(data), 1)
        while entry_end < features_end:
            at, entry_end = _bytes_field(data, entry_end, features_end, 1)
            begin, end = _bytes_field(data, at, entry_end, 1)
            name = data[begin:end].decode()
            begin, end = _bytes_field(data, end, entry_end, 2)
            if end != entry_end:
                raise ValueError("not a tf.train.Example: an entry of more than a name and a feature")
            yield name, begin, end


def _value(data: bytes, begin: int, end: int) -> memoryview | int | None:
    """The one value of a feature; None of an empty one."""
    if begin == end:
        return None
    kind = data[begin] >> 3
    at, list_end = _bytes_field(data, begin, end, kind)
    if at == list_end:
        return None
    if kind == _BYTES_LIST:
        begin, value_end = _bytes_field(data, at, list_end, 1)
        if value_end == list_end == end:
            return memoryview(data)[begin:value_end]
    elif kind == _INT_LIST:
        stop = list_end
        if data[at] == 1 << 3 | _VARINT:
            at += 1
        else:  # packed, as numbers are
            at, stop = _bytes_field(data, at, list_end, 1)
        value, value_end = _varint(data, at, stop)
        if value_end == stop == list_end == end:
            return value if value < 1 << 63 else value - (1 << 64)
    raise ValueError(f"a feature of kind {kind} or of several values; one string of bytes or one integer is read")


def _bytes_field(data: bytes, at: int, end: int, number: int) -> tuple[int, int]:
    """(begin, end) of the contents of the field at `at`, which has this number, in a message that ends at `end`."""
    if at + 1 >= end or data[at] != number << 3 | _BYTES:
        found = f"byte {data[at]}" if at + 1 < end else "the end"
        raise ValueError(f"not a tf.train.Example: {found} at {at}, where bytes of field {number} should begin")
    size, begin = data[at + 1], at + 2
    if size > 127:
        size, begin = _varint(data, at + 1, end)
    if begin + size > end:
        raise ValueError(f"not a tf.train.Example: {size} bytes at {begin}, where {end - begin} are left")
    return begin, begin + size


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """(value, end) of the number at `at`."""
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        if byte < 128:
            return value | byte << shift, at
        value |= (byte & 127) << shift
        shift += 7
    raise ValueError(f"not a tf.train.Example: cut short at {end}")
