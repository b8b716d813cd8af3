"""A run as an sbatch script: one task a node with all of its GPUs, restarts by exit code, requeued after a saved stop.

The traps that the script steps around: JAX's SLURM detection gives a task the one GPU of its local rank
    (JAX_LOCAL_DEVICE_IDS says
all); proxy variables hang the processes' meeting; srun reports the highest code, not the first
(`launch.supervise --first-code`); `--kill-on-bad-exit` would kill the peers of a process that has just saved (`--wait`
gives them the grace period); a log that is not appended to is lost with a requeue.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from launch import command, external
from launch.sbatch_lines import log_pattern, option
from launch.spec import RunSpec
from omnihuman_jax.runtime import exit_codes

_PROXIES = "http_proxy https_proxy ftp_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY FTP_PROXY ALL_PROXY NO_PROXY"


def check(spec: RunSpec) -> None:
    """ValueError on what SLURM cannot do."""
    machines, slurm = spec.machines, spec.slurm
    if machines.kind == "tpu":
        raise ValueError(
            f"accelerator.type {machines.type} cannot run on SLURM, which serves GPU and cpu nodes; use "
            "--target jobset or queued-resource"
        )
    if slurm.runtime == "python" and not (slurm.python and slurm.workdir):
        raise ValueError(
            "slurm.python and slurm.workdir are missing; set them to the interpreter and to the checkout, "
            "both on a shared file system"
        )
    if slurm.runtime == "apptainer" and (found := re.search("[:,]", spec.output)):
        raise ValueError(f"output {spec.output!r} has a {found[0]!r}, which parts the folders of a --bind; rename it")
    for field in ("python", "workdir"):
        if (value := getattr(slurm, field)) and not value.startswith("/"):
            raise ValueError(f"slurm.{field} {value!r} is not an absolute path")
    unused = {"image": spec.image, "slurm.binds": slurm.binds}
    if slurm.runtime == "apptainer":
        unused = {"slurm.python": slurm.python, "slurm.workdir": slurm.workdir}
    if names := [name for name, value in unused.items() if value]:
        raise ValueError(
            f"{' and '.join(names)} has no effect with slurm.runtime {slurm.runtime}; remove it, or use "
            "the other runtime"
        )

    own = {line.partition("=")[0] for line in directives(spec)[: -len(slurm.directives) or None]}
    if twice := [line for line in slurm.directives if line.partition("=")[0] in own]:
        raise ValueError(
            f"slurm.directives: {twice[0]!r} is set by the launcher from the spec's own fields; leave it out"
        )


def state_dir(spec: RunSpec) -> str:
    """Logs, attempts and codes, on the shared file system."""
    return f"{spec.output}/launch"


def directives(spec: RunSpec) -> list[str]:
    """The `#SBATCH` lines' options."""
    machines, slurm = spec.machines, spec.slurm
    rows = {
        "--job-name": spec.name,
        "--nodes": str(machines.hosts),
        "--ntasks-per-node": "1",
        "--gpus-per-node": str(machines.chips) if machines.kind == "gpu" else "",
        "--partition": slurm.partition,
        "--account": slurm.account,
        "--qos": slurm.qos,
        "--time": slurm.time,
        "--reservation": spec.reservation,
        "--output": log_pattern("output", state_dir(spec)),
        "--open-mode": "append",
        # Without B: the signal goes to the tasks, and the script lives on to requeue.
        "--signal": f"TERM@{spec.grace_s}",
    }
    lines = [option(name, value) for name, value in rows.items() if value]
    return [*lines, "--exclusive", "--requeue", *slurm.directives]


def task_argv(spec: RunSpec) -> list[str]:
    """What srun starts on every node, up to the attempt's own `--first-code`."""
    slurm = spec.slurm
    if slurm.runtime == "python":
        argv = [slurm.python]
    else:
        argv = ["apptainer", "exec", *(["--nv"] if spec.machines.kind == "gpu" else []), "--pwd", "/app"]
        for bind in (spec.output, *slurm.binds):
            argv += ["--bind", bind]
        argv += [f"docker://{spec.image}", "python"]
    argv += ["-m", "launch.supervise"]
    for name, ref in spec.secrets.items():
        argv += ["--secret", f"{name}={ref.file}"]
    return argv


def trainer_argv(spec: RunSpec) -> list[str]:
    machines = spec.machines
    simulate = machines.devices_per_host if machines.kind == "cpu" else 0
    return command.train(spec, ["--distributed"], simulate=simulate)


def render(spec: RunSpec) -> str:
    """The script."""
    machines, slurm = spec.machines, spec.slurm
    names = command.environment(spec)
    if machines.kind == "gpu":
        names |= command.local_device_ids(machines.devices_per_host)
    srun = ["srun", f"--wait={spec.grace_s}", *([f"--chdir={slurm.workdir}"] if slurm.runtime == "python" else [])]
    lines = [
        "#!/usr/bin/env bash",
        *(f"#SBATCH {line}" for line in directives(spec)),
        "set -uo pipefail",
        f"unset {_PROXIES}",
        *(f"export {name}={shlex.quote(value)}" for name, value in names.items()),
        *slurm.setup,
        "",
        f"state={shlex.quote(state_dir(spec))}/$SLURM_JOB_ID",
        'mkdir -p "$state"',
        'number() { cat "$state/$1" 2>/dev/null || echo 0; }',
        "while true; do",
        "  RESTART_ATTEMPT=$(number attempts); export RESTART_ATTEMPT",
        '  echo $((RESTART_ATTEMPT + 1)) >"$state/attempts"',
        "  first=$state/code.$RESTART_ATTEMPT",
        f'  {_join(srun)} {_join(task_argv(spec))} --first-code "$first" -- \\',
        f"    {_join(trainer_argv(spec))}",
        "  code=$?",
        '  [ "$code" -ne 0 ] && [ -s "$first" ] && code=$(cat "$first")',
        '  case "$code" in',
        "    0) exit 0 ;;",
        (
            f'    {"|".join(map(str, exit_codes.FAIL_AT_ONCE))}) echo "code $code: no restart cures it" >&2; exit'
            ' "$code" ;;'
        ),
        (
            f'    {"|".join(map(str, exit_codes.FREE_RESTARTS))}) echo "code $code: saved and stopped; back into the'
            ' queue" >&2'
        ),
        '      scontrol requeue "$SLURM_JOB_ID"; exit "$code" ;;',
        "  esac",
        "  failures=$(($(number failures) + 1))",
        '  echo "$failures" >"$state/failures"',
        f'  if [ "$failures" -gt {spec.restarts} ]; then',
        f'    echo "code $code: failed $failures times, {spec.restarts} restarts allowed" >&2; exit "$code"',
        "  fi",
        f'  echo "code $code: restart $failures of {spec.restarts}" >&2',
        '  sleep "${RESTART_PAUSE_S:-10}"',
        "done",
    ]
    return "\n".join(lines) + "\n"


def _join(argv: Sequence[str]) -> str:
    return shlex.join(argv)


def submit(spec: RunSpec) -> int:
    """Hands the script to sbatch. SLURM drops a job whose log cannot be opened, so the folder is made first."""
    external.find("sbatch")
    Path(state_dir(spec)).mkdir(parents=True, exist_ok=True)
    return external.run(["sbatch", "--parsable"], stdin=render(spec))


def status(spec: RunSpec) -> int:
    """The job in the queue; nothing once it has ended."""
    return external.run(["squeue", "--me", "--name", spec.name, "--format", "%i %j %T %M %l %D %R"])


def logs(spec: RunSpec, *, rank: int, follow: bool, lines: int) -> int:
    """The newest log, in which srun interleaves all tasks."""
    files = sorted(Path(state_dir(spec)).glob("slurm-*.log"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"{state_dir(spec)} has no slurm-*.log; is the job still waiting? (omnihuman status)")
    return external.run(
        ["tail", "--lines", str(lines), *(["--follow=name", "--retry"] if follow else []), str(files[-1])]
    )


def cancel(spec: RunSpec) -> int:
    """SIGTERM to script and tasks, SIGKILL after the cluster's KillWait: what the last checkpoint does not hold is
    lost.
    """
    return external.run(["scancel", "--me", "--name", spec.name])
