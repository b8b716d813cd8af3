"""A run as an sbatch script: one task a node with all of its GPUs, restarts by exit code, requeued after a saved stop.

The traps that the script steps around: sbatch copies the submitter's whole environment (`--export=NONE`; a login shell
has `module` all the same); JAX's SLURM detection gives a task the one GPU of its local rank (JAX_LOCAL_DEVICE_IDS says
all); proxy variables hang the processes' meeting; srun reports the highest code, not the first (`launch.supervise
--first-code`); `--kill-on-bad-exit` would kill the peers of a process that has just saved (`--wait` gives them the
grace period); a log that is not appended to is lost with a requeue; SLURM ends a job at its time limit for good, and
tells a script of it that does not itself wait for a program.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch import command, external, literals
from launch.sbatch_lines import log_pattern, option
from launch.spec import RunSpec
from launch.target import Target
from omnihuman_jax.runtime import exit_codes

_PROXIES = "http_proxy https_proxy ftp_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY FTP_PROXY ALL_PROXY NO_PROXY"

# SLURM sends a signal up to so much earlier than it was asked to.
SIGNAL_EARLY_S = 60


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
    if "://" in spec.output:
        raise ValueError(
            f"output {spec.output!r} must be a folder with --target slurm, whose logs are written there; give"
            " `checkpoints` the URI"
        )
    _check_path(spec.output)
    _check_time(spec)
    own = {*_rows(spec), *_ALWAYS}
    if twice := [line for line in slurm.directives if line.partition("=")[0] in own - {"--mem"}]:
        raise ValueError(
            f"slurm.directives: {twice[0]!r} is set by the launcher from the spec's own fields; leave it out"
        )


def _check_path(output: str) -> None:
    """`#SBATCH` lines have quotes of their own; with a backslash SLURM would replace no `%j` any more."""
    if found := re.search(r"""['"\\\n]""", output):
        raise ValueError(
            f"output {output!r} has a {found[0]!r}, which SLURM cannot have in the name of a log; rename it"
        )


def _check_time(spec: RunSpec) -> None:
    """The signal comes `grace_s` before the limit, or a minute earlier: what is left has to be worth a start."""
    limit, least = _seconds(spec.slurm.time), spec.grace_s + SIGNAL_EARLY_S
    if limit and limit <= least:
        raise ValueError(
            f"slurm.time {spec.slurm.time!r} is {limit} s, and a job is asked to stop up to grace_s {spec.grace_s} +"
            f" {SIGNAL_EARLY_S} s before it ends, so this one would go back into the queue for ever; give it more than"
            f" {least} s"
        )


def _seconds(time: str) -> int:
    """Of a checked `slurm.time`; 0: none is given."""
    if not time:
        return 0
    days, _, clock = time.rpartition("-")
    parts = clock.split(":")
    if len(parts) == 1:
        return 60 * int(clock)
    hours, minutes, seconds = map(int, parts)
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def state_dir(spec: RunSpec) -> str:
    """Logs, attempts and codes, on the shared file system."""
    return f"{spec.output}/launch"


def _rows(spec: RunSpec) -> dict[str, str]:
    """The options of sbatch that come from the spec; empty: not given."""
    machines, slurm = spec.machines, spec.slurm
    return {
        "--job-name": spec.name,
        "--nodes": str(machines.hosts),
        "--ntasks-per-node": "1",
        "--gpus-per-node": str(machines.chips) if machines.kind == "gpu" else "",
        # An exclusive node does not give its memory by itself; 0 is all of it.
        "--mem": "" if any(line.startswith("--mem") for line in slurm.directives) else "0",
        "--partition": slurm.partition,
        "--account": slurm.account,
        "--qos": slurm.qos,
        "--time": slurm.time,
        "--reservation": spec.reservation,
        "--output": log_pattern(state_dir(spec)),
        "--open-mode": "append",
        # Without B: the signal goes to the tasks, and the script lives on to requeue.
        "--signal": f"TERM@{spec.grace_s}",
        # The submitter's environment, tokens and all, stays where it is.
        "--export": "NONE",
    }


_ALWAYS = ("--exclusive", "--requeue")


def directives(spec: RunSpec) -> list[str]:
    """The `#SBATCH` lines' options."""
    lines = [option(name, value) for name, value in _rows(spec).items() if value]
    return [*lines, *_ALWAYS, *spec.slurm.directives]


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
    """The script. A login shell: `module` and its like are functions, which no environment hands on."""
    machines, slurm = spec.machines, spec.slurm
    names = command.environment(spec)
    if machines.kind == "gpu":
        names |= command.local_device_ids(machines.devices_per_host)
    lines = [
        "#!/bin/bash -l",
        *(f"#SBATCH {line}" for line in directives(spec)),
        # What --export=NONE says is for this script alone, not for the tasks.
        "export SLURM_EXPORT_ENV=ALL",
        *(f"export {name}={shlex.quote(value)}" for name, value in names.items()),
        *slurm.setup,
        # After the user's lines: the scripts of conda and modules read variables that are not set.
        "set -uo pipefail",
        f"unset {_PROXIES}",
        "",
        f"state={shlex.quote(state_dir(spec))}/$SLURM_JOB_ID",
        'mkdir -p "$state"',
        'number() { cat "$state/$1" 2>/dev/null || echo 0; }',
        *_STOP,
        *_loop(spec),
    ]
    return "\n".join(lines) + "\n"


# SIGTERM to the script itself: at the time limit (a save outlasted grace_s), which SLURM takes for the job's end; or a
# cancel, after which nothing may go back into the queue; or from someone who lets the job run on.
_STOP = (
    "stopped=",
    "stop() {",
    '  case "$(scontrol show job "$SLURM_JOB_ID")" in',
    "    *Reason=TimeLimit*)",
    '      echo "the time limit came before the save was done; back into the queue, to the last checkpoint" >&2',
    '      scontrol requeue "$SLURM_JOB_ID"; stopped=yes ;;',
    "    *JobState=RUNNING*) ;;",
    "    *) stopped=yes ;;",
    "  esac",
    "}",
    "trap stop TERM",
)


def _loop(spec: RunSpec) -> list[str]:
    """Attempts in one allocation. bash runs a trap only while it waits, hence the `&`."""
    srun = ["srun", f"--wait={spec.grace_s}"]
    if spec.slurm.runtime == "python":
        srun.append(f"--chdir={spec.slurm.workdir}")
    fail, free = ("|".join(map(str, codes)) for codes in (exit_codes.FAIL_AT_ONCE, exit_codes.FREE_RESTARTS))
    return [
        "while true; do",
        "  RESTART_ATTEMPT=$(number attempts); export RESTART_ATTEMPT",
        '  echo $((RESTART_ATTEMPT + 1)) >"$state/attempts"',
        "  first=$state/code.$RESTART_ATTEMPT",
        f'  {_join(srun)} {_join(task_argv(spec))} --first-code "$first" -- \\',
        f"    {_join(trainer_argv(spec))} &",
        "  wait $!; code=$?",
        "  while kill -0 $! 2>/dev/null; do wait $!; code=$?; done",
        '  [ "$code" -ne 0 ] && [ -s "$first" ] && code=$(cat "$first")',
        '  [ -n "$stopped" ] && exit "$code"',
        '  case "$code" in',
        "    0) exit 0 ;;",
        f'    {fail}) echo "code $code: no restart cures it" >&2; exit "$code" ;;',
        f'    {free}) echo "code $code: saved and stopped; back into the queue" >&2',
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


def _join(argv: Sequence[str]) -> str:
    return shlex.join(argv)


def submit(spec: RunSpec) -> int:
    """Hands the script to sbatch. SLURM drops a job whose log cannot be opened, so the folder is made first."""
    external.find("sbatch")
    Path(state_dir(spec)).mkdir(parents=True, exist_ok=True)
    return external.run(["sbatch", "--parsable"], stdin=render(spec))


def _jobs(spec: RunSpec, form: str) -> list[str]:
    """A line for each job of that name in the queue."""
    return external.ask(["squeue", "--me", "--name", spec.name, "--noheader", "--format", form]).splitlines()


def status(spec: RunSpec) -> int:
    """The job in the queue."""
    rows = _jobs(spec, "%i %T, ran for %M of %l, %D nodes: %R")
    print("\n".join(f"{spec.name}: job {row}" for row in rows) or _gone(spec))
    return 0


def _gone(spec: RunSpec) -> str:
    return f"{spec.name}: not in the queue; its logs are in {state_dir(spec)}"


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
    if not _jobs(spec, "%i"):
        print(_gone(spec))
        return 0
    return external.run(["scancel", "--me", "--name", spec.name])


def homes(spec: RunSpec) -> dict[str, str] | None:
    """All of a node's folders; in a container, what is bound into it."""
    if spec.slurm.runtime != "apptainer":
        return None
    binds = [bind.split(":") for bind in spec.slurm.binds]
    inside = {(parts[1] if len(parts) > 1 else parts[0]): "ro" in parts[2:] for parts in binds}
    return {spec.output: ""} | {path: "a bind that is read-only" if fixed else "" for path, fixed in inside.items()}


def images(spec: RunSpec) -> Iterator[tuple[str, str]]:
    """The container's, and what the user's own lines name."""
    for image in literals.images_in_text([*spec.slurm.directives, *spec.slurm.setup]):
        yield "slurm: the image", image
    if spec.slurm.runtime == "apptainer":
        yield "image", spec.image


TARGET = Target(
    name="slurm",
    check=check,
    describe=lambda spec: str(spec.machines),
    render=render,
    submit=submit,
    status=status,
    logs=logs,
    cancel=cancel,
    homes=homes,
    homes_field="output and slurm.binds",
    takes=(),
    instead={
        # A class of Kubernetes has no number that SLURM could take.
        "priority": "SLURM has slurm.qos, and slurm.directives such as --nice=100",
        "queue": "SLURM has slurm.partition",
        "spot": "SLURM has slurm.partition",
        "volumes": "the nodes' own file systems are there, in a container by slurm.binds",
    },
    images=images,
    secrets="files",
    here=False,
    warnings=lambda spec: [],
)
