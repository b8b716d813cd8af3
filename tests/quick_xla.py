"""Options with which XLA:CPU compiles in a third of the time, for tests that start trainings. The one place that
knows them by JAX's version.

Programs are slower without optimisation, and their last bits are others; the partitioner, and so every collective, is
the same. What a test compares was compiled alike.
"""

import contextlib
from collections.abc import Iterator
from importlib.metadata import version

JAXLIB = tuple(int(part) for part in version("jaxlib").split(".")[:2])

OPTIONS: dict[str, int | bool] = {"xla_backend_optimization_level": 0}
if JAXLIB < (0, 11):
    # Newer ones have no other emitters, do not know the option, and end a process that has it in XLA_FLAGS.
    OPTIONS["xla_cpu_use_fusion_emitters"] = False

FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())


@contextlib.contextmanager
def compiled_quickly() -> Iterator[None]:
    """The same for what this process compiles."""
    import jax  # here: who starts trainings does not need it

    name = "jax_disable_most_optimizations"
    kept = jax.config.values[name]
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, kept)
