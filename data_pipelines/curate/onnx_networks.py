"""Networks in ONNX, run by onnxruntime on one core: a worker process has one, and the order of sums is then fixed."""

import functools
from pathlib import Path
from typing import Any


@functools.cache
def open_network(path: Path) -> Any:
    """The `InferenceSession` of a file, opened once a process.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no network that this onnxruntime can run.
        ImportError: onnxruntime is not installed; names the extra that brings it.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            f"{path.name} needs onnxruntime, which cannot be imported ({error}); pip install 'omnihuman-jax[curation]'"
        ) from error
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such network; give the path of an .onnx file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes, which it does not export
        why = " ".join(str(error).split())
        raise ValueError(f"{path}: not a network that onnxruntime can run ({why}); export it to ONNX again") from error
