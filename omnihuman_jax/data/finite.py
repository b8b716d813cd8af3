"""Where in an array the first value is that is no number."""

import numpy as np

_FLOAT16_EXPONENT = 0x7C00


def not_finite(array: np.ndarray) -> str:
    """The first value that is NaN or infinite and where, such as `nan at [0, 3]`; "" if there is none."""
    if array.dtype.kind != "f":
        return ""
    if array.dtype == np.float16:  # numpy has no fast way: by the bits of the exponent
        wrong = array.view(np.uint16) & _FLOAT16_EXPONENT == _FLOAT16_EXPONENT
    else:
        wrong = ~np.isfinite(array)
    if not wrong.any():
        return ""
    at = [int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape)]
    return f"{array[tuple(at)]} at {at}"
