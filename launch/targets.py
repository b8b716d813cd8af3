"""The targets of `omnihuman submit`: a row each."""

from launch import compute_engine, jobset, local_target, queued_resource, slurm
from launch.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        jobset.TARGET,
        compute_engine.TARGET,
        queued_resource.TARGET,
        slurm.TARGET,
        local_target.TARGET,
    )
}
