"""Reads a serialised tf.train.Example in place: what a feature holds is a view of the record's bytes, not a copy.

The messages are Example { Features = 1 }, Features { map entry = 1 }, entry { name = 1, Feature = 2 }, Feature {
BytesList = 1 | FloatList = 2 | Int64List = 3 }, each list { value = 1 } (tensorflow/core/example/*.proto). Records stay
readable by tensorflow-datasets, which writes them.
"""

_VARINT, _BYTES = 0, 2  # wire types


def parse_example(data: bytes) -> dict[str, memoryview | int]:
    """Feature name -> its one value: a view of bytes, or an int; features without a value are left out.

    ValueError where the bytes are no such message, or a feature holds floats or more than one value.
    """
    whole = memoryview(data)
    result: dict[str, memoryview | int] = {}
    try:
        for features in _fields(whole, 1):
            for entry in _fields(features, 1):
                _, name, at = _next_bytes(entry, 0)
                _, feature, end = _next_bytes(entry, at)
                if len(feature):
                    kind, values, _ = _next_bytes(feature, 0)
                    if len(values):
                        result[str(name, "utf-8")] = _value(kind, values)
                if end != len(entry):
                    raise ValueError("an entry of more than a name and a feature")
    except IndexError as error:  # cut short
        raise ValueError(f"not a tf.train.Example: {error}") from None
    return result


def feature_bytes(data: bytes, name: str) -> memoryview | None:
    """The bytes of the feature `name`, whatever the others hold; None if it is not there or has no value.

    ValueError where the bytes are no tf.train.Example, or the feature holds numbers or more than one value.
    """
    try:
        for features in _fields(memoryview(data), 1):
            for entry in _fields(features, 1):
                _, key, at = _next_bytes(entry, 0)
                if str(key, "utf-8") == name:
                    _, feature, _ = _next_bytes(entry, at)
                    kind, values, _ = _next_bytes(feature, 0) if len(feature) else (1, feature, 0)
                    value = _value(kind, values) if len(values) else None
                    if isinstance(value, int):
                        raise ValueError(f"the feature {name} holds a number")
                    return value
    except IndexError as error:  # cut short
        raise ValueError(f"not a tf.train.Example: {error}") from None
    return None


def _value(kind: int, values: memoryview) -> memoryview | int:
    """The one value of a list; `kind` is the Feature's field."""
    _, value, end = _next(values, 0)
    is_one = end == len(values)
    if kind == 3 and not isinstance(value, int):  # packed, as numbers are
        packed = value
        value, end = _varint(packed, 0)
        is_one &= end == len(packed)
    if not is_one or kind != (3 if isinstance(value, int) else 1):
        raise ValueError(f"a feature of kind {kind} or of several values")
    return value if isinstance(value, memoryview) or value < 1 << 63 else value - (1 << 64)


def _fields(message: memoryview, number: int) -> list[memoryview]:
    """The contents of a message that has nothing but fields of this number, of bytes."""
    result, at = [], 0
    while at < len(message):
        found, value, at = _next_bytes(message, at)
        if found != number:
            raise ValueError(f"field {found} where only {number} can be")
        result.append(value)
    return result


def _next_bytes(message: memoryview, at: int) -> tuple[int, memoryview, int]:
    number, value, end = _next(message, at)
    if isinstance(value, int):
        raise ValueError(f"field {number} is a number where bytes should be")
    return number, value, end


def _next(message: memoryview, at: int) -> tuple[int, memoryview | int, int]:
    """(number, value, end) of the field that begins at `at`."""
    tag, at = _varint(message, at)
    size, at = _varint(message, at)
    if tag & 7 == _VARINT:
        return tag >> 3, size, at
    if tag & 7 != _BYTES or at + size > len(message):
        raise ValueError(f"wire type {tag & 7}, or {size} bytes where {len(message) - at} are left")
    return tag >> 3, message[at : at + size], at + size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    byte = message[at]
    if byte < 128:
        return byte, at + 1
    result, shift = 0, 0
    while byte >= 128:
        result |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        byte = message[at]
    return result | byte << shift, at + 1
