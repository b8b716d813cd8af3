"""Networks in ONNX, run by onnxruntime on one core: a worker process has one, and the order of sums is then fixed. Or
on a GPU (`use`), with algorithms that no stopwatch chooses.
"""

import contextvars
import functools
from pathlib import Path
from typing import Any

DEVICES = ("cpu", "cuda")
_CPU: list[Any] = ["CPUExecutionProvider"]
# Each process would find another algorithm the fastest; TF32 has ten bits.
_CUDA = ("CUDAExecutionProvider", {"cudnn_conv_algo_search": "DEFAULT", "use_tf32": "0"})
_device = contextvars.ContextVar("device", default="cpu")


def use(device: str) -> None:
    """The networks that this process opens from now on run there; one of `DEVICES`."""
    _device.set(device)


def open_network(path: Path, device: str | None = None) -> Any:
    """The `InferenceSession` of a file, opened once a process. device: another one than that of `use`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no network that this onnxruntime can run, or it runs none on the device.
        ImportError: onnxruntime is not installed; names the extra that brings it.
    """
    return _open(path, device or _device.get())


@functools.cache
def _open(path: Path, device: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            f"{path.name} needs onnxruntime, which cannot be imported ({error}); pip install 'omnihuman-jax[curation]'"
        ) from error
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such network; give the path of an .onnx file")
    if device == "cuda" and _CUDA[0] not in (offered := onnxruntime.get_available_providers()):
        # It would be run on the CPU, in silence.
        raise ImportError(
            f"--network-device cuda: this onnxruntime offers {', '.join(offered)}; pip install onnxruntime-gpu, or"
            " leave the option out"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=[_CUDA, *_CPU] if device == "cuda" else _CPU
        )
    except Exception as error:  # onnxruntime's own classes, which it does not export
        why = " ".join(str(error).split())
        raise ValueError(f"{path}: not a network that onnxruntime can run ({why}); export it to ONNX again") from error
    if device == "cuda":
        # Where CUDA does not start, or gives up later, onnxruntime goes on on the CPU with no more than a warning.
        session.disable_fallback()
        if _CUDA[0] not in session.get_providers():
            raise ImportError(
                "--network-device cuda: onnxruntime cannot start CUDA here; see that the driver, cuDNN and a GPU are"
                " visible to this process, or leave the option out"
            )
    return session
