"""`python -m launch.supervise [options] -- ARGUMENTS`: keeps one `python ARGUMENTS` running on one host by the
launchers' rule.

    python -m launch.supervise --restarts 10 -- -m omnihuman_jax.cli train --config CONFIG --run RUN --distributed

For places without a controller that knows exit codes: TPU VMs (every host supervises its own process; when one dies,
JAX ends its peers, and all meet again) and SLURM (no restarts here; the first code that a process leaves is written for
the batch script, because srun only reports the highest). SIGTERM is passed on, and ends the restarts.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from omnihuman_jax.runtime import exit_codes
from omnihuman_jax.runtime.exit_codes import AfterExit

# A process that ends sooner is in a loop of failures: each pause is twice the one before.
STEADY_S = 60.0
MAX_PAUSE_S = 60.0


def read_secrets(pairs: Mapping[str, str]) -> dict[str, str]:
    """The contents of secret files by variable; FileNotFoundError or ValueError names the file, never what is in it."""
    values = {}
    for name, file in pairs.items():
        path = Path(file)
        if not path.is_file():
            raise FileNotFoundError(f"{file} does not exist; secrets.{name}.file must be present on every machine")
        values[name] = path.read_text(encoding="utf-8").strip()
        if not values[name]:
            raise ValueError(f"{file} is empty; it must contain secrets.{name}")
    return values


def note_first_code(path: Path, code: int) -> None:
    """Writes the code unless another process of the job was first."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{code}\n")


def first_pause() -> float:
    """Seconds before the first restart; the environment shortens it for tests."""
    return float(os.environ.get("OMNIHUMAN_RESTART_PAUSE_S", "1"))


def next_pause(pause_s: float, uptime_s: float) -> float:
    """Twice as long after each process that did not live long."""
    return min(pause_s * 2, MAX_PAUSE_S) if uptime_s < STEADY_S else first_pause()


def supervise(
    argv: Sequence[str], *, restarts: int, environment: Mapping[str, str], first_code: Path | None = None
) -> int:
    """Runs `argv` until it is done, a user error, or fails once more than `restarts` times; its last code.

    RESTART_ATTEMPT counts on from the one in the environment.
    """
    attempt = int(environment.get("RESTART_ATTEMPT", "0"))
    stopping = False
    child: subprocess.Popen | None = None

    def stop(number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True
        if child is not None:
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    counted, pause = 0, first_pause()
    while True:
        started = time.monotonic()
        # A session of its own: a signal to our group reaches it once, through us.
        child = subprocess.Popen(
            list(argv), env=dict(environment) | {"RESTART_ATTEMPT": str(attempt)}, start_new_session=True
        )
        if stopping:
            child.terminate()
        code = exit_codes.of_returncode(child.wait())
        verdict = exit_codes.after_exit(code)
        if first_code is not None and verdict is not AfterExit.DONE:
            note_first_code(first_code, code)
        counted += verdict is AfterExit.RESTART_COUNTED
        if stopping or verdict in (AfterExit.DONE, AfterExit.FAIL) or restarts == 0 or counted > restarts:
            return code
        print(
            f"launch.supervise: code {code}: {verdict.value} ({counted} of {restarts}); attempt {attempt + 1}",
            flush=True,
        )
        time.sleep(pause)
        pause = next_pause(pause, time.monotonic() - started)
        if stopping:
            return code
        attempt += 1


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.supervise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--restarts",
        type=int,
        default=0,
        metavar="N",
        help="how many counted restarts are allowed; 0: no restart at all",
    )
    parser.add_argument(
        "--first-code", type=Path, metavar="FILE", help="file that the first process to fail writes its exit code to"
    )
    parser.add_argument(
        "--secret", action="append", default=[], metavar="NAME=FILE", help="environment variable from a file"
    )
    parser.add_argument("arguments", nargs="+", metavar="ARGUMENTS", help="of python")
    options = parser.parse_args(list(argv))
    try:
        secrets = read_secrets(dict(pair.split("=", 1) for pair in options.secret))
    except (ValueError, OSError) as error:
        print(f"launch.supervise: {error}", file=sys.stderr)
        if options.first_code:
            note_first_code(options.first_code, exit_codes.USER_ERROR)
        return exit_codes.USER_ERROR
    command = [sys.executable, *options.arguments]
    return supervise(
        command, restarts=options.restarts, environment=os.environ | secrets, first_code=options.first_code
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
