"""`omnihuman train` that stays at a moment of its life for a while, inside C, as JAX and TensorStore do.

    python -m tests.training.moments MOMENT SECONDS -- ARGUMENTS OF omnihuman

It prints "AT MOMENT", then the main thread runs no Python for SECONDS.
"""

import ctypes
import importlib
import importlib.abc
import sys
import time

# moment -> module, class or "", function that is entered then, which call of it.
HOOKS = {
    "reading the config": ("omnihuman_jax.commands.train", "", "load_config", 1),
    "joining": ("jax.distributed", "", "initialize", 1),
    "opening the data set": ("omnihuman_jax.training.resume", "", "assemble", 1),
    "restoring": ("omnihuman_jax.checkpoint.checkpoints", "Checkpoints", "choose", 1),
    "measuring the peak": ("omnihuman_jax.commands.train", "", "measure_matmul_peak", 1),
    "compiling": ("omnihuman_jax.commands.train", "", "compile_step", 1),
    "the first step": ("omnihuman_jax.training.placement", "", "place_batch", 1),
    "a later step": ("omnihuman_jax.training.placement", "", "place_batch", 3),
    "saving": (
        "omnihuman_jax.checkpoint.writer",
        "CheckpointWriter",
        "_write_manifest",
        1,
    ),  # in its own thread, while steps go on
    "the last save": ("omnihuman_jax.checkpoint.checkpoints", "Checkpoints", "finish", 1),
}
IMPORTING = "importing"


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def stay(moment: str, seconds: float) -> None:
    """In C, without the interpreter's lock: handlers of Python's wait, other threads run."""
    print(f"AT {moment}", flush=True)
    library, mutex, until = ctypes.CDLL(None), ctypes.create_string_buffer(256), _Time(int(time.time() + seconds), 0)
    # Its own lock a second time: unlike a sleep or a read, no signal interrupts that.
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_timedlock(mutex, ctypes.byref(until))


class _Importing(importlib.abc.MetaPathFinder):
    def __init__(self, seconds: float):
        self._seconds = seconds

    def find_spec(self, name, path=None, target=None):
        if name == "omnihuman_jax.commands.train":
            stay(IMPORTING, self._seconds)


def hook(moment: str, seconds: float) -> None:
    """From now on this process stays there."""
    if moment == IMPORTING:
        sys.meta_path.insert(0, _Importing(seconds))
        return
    module, owner, name, which = HOOKS[moment]
    place = importlib.import_module(module)
    place = getattr(place, owner) if owner else place
    real, calls = getattr(place, name), iter(range(1, 1 << 30))

    def entered(*args, **kwargs):
        if next(calls) == which:
            stay(moment, seconds)
        return real(*args, **kwargs)

    setattr(place, name, entered)


if __name__ == "__main__":
    moment, seconds, _, *arguments = sys.argv[1:]
    from omnihuman_jax import cli

    # The devices are chosen before jax is imported.
    if arguments[0] == "--simulate-devices":
        cli.simulate_devices(int(arguments[1]))
        arguments = arguments[2:]
    hook(moment, float(seconds))
    sys.exit(cli.main(arguments))
