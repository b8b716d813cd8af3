"""The trainer's command line and environment, the same for every target but for how its processes find each other."""

from collections.abc import Mapping, Sequence

from launch.spec import RunSpec

COORDINATOR_PORT = 8482


def overrides(spec: RunSpec) -> list[str]:
    """The spec's overrides as flags."""
    fields = dict(spec.overrides) | ({"checkpoint.directory": spec.checkpoints} if spec.checkpoints else {})
    return [f"--config.{name}={value}" for name, value in fields.items()]


def train(spec: RunSpec, join: Sequence[str], *, simulate: int = 0) -> list[str]:
    """Arguments of the interpreter: `-m omnihuman_jax.cli train ...`.

    Args:
        spec: the run.
        join: how this process finds the others: `--distributed`, or coordinator, count and index, or nothing
            (environment).
        simulate: CPU devices to simulate; 0 takes the machine's own.
    """
    argv = ["-m", "omnihuman_jax.cli"]
    if simulate:
        argv += ["--simulate-devices", str(simulate)]
    argv += ["train", f"--config={spec.config}", f"--run={spec.output}", "--no-progress"]
    return [*argv, *join, *overrides(spec)]


def environment(spec: RunSpec) -> dict[str, str]:
    """What every process finds in its environment, without secrets."""
    names = {"PYTHONUNBUFFERED": "1"}
    if spec.compilation_cache:
        names["JAX_COMPILATION_CACHE_DIR"] = spec.compilation_cache
    return names | dict(spec.env)


def local_device_ids(count: int) -> dict[str, str]:
    """All devices of the host for its one process.

    Without it JAX asks the cluster that it believes to be in: SLURM's would give the process the one device of its
    local rank, Kubernetes' would want to list pods.
    """
    return {"JAX_LOCAL_DEVICE_IDS": ",".join(map(str, range(count)))}


def coordinator(address: str, processes: int) -> Mapping[str, str]:
    """The explicit meeting point, but for the index of the process."""
    return {"JAX_COORDINATOR_ADDRESS": f"{address}:{COORDINATOR_PORT}", "JAX_NUM_PROCESSES": str(processes)}
