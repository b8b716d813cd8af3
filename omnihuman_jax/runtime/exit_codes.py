"""How a training process ends, in one place: the trainer exits with these codes, every launcher acts on them.

A launcher (JobSet's failure policy, the sbatch script, `launch/local.py`) knows nothing of a job but the code that its
first process left with:

| code | name | means | the launcher |
|---|---|---|---|
| 0 | OK | trained to the end, or to `--stop-after` | is done |
| 2 | USER_ERROR | wrong config, data or weights (argparse's own code too): it would fail again | fails at once |
| 42 | RESTART | asked to stop (SIGTERM, preemption); saved at the same step by all, or not begun | restarts, for free |
| 43 | RETRY | a fault that a restart may cure: roll back after non-finite steps, a storage outage | restarts, counted |
| 44 | HANG | the watchdog saw no progress, wrote all stacks and left | restarts, counted |
| 1, 128+n | | a bug or a lost peer, killed by signal n (134: JAX ended the peers of a dead one) | restarts, counted |

130 is Ctrl-C of a user at the keyboard: no launcher restarts that.
"""

import enum
import signal

OK = 0
FAILURE = 1
USER_ERROR = 2
RESTART = 42
RETRY = 43
HANG = 44
INTERRUPTED = 128 + signal.SIGINT
ABORTED = 128 + signal.SIGABRT
KILLED = 128 + signal.SIGKILL
TERMINATED = 128 + signal.SIGTERM


class AfterExit(enum.Enum):
    """What a launcher does about a job."""

    DONE = "done"
    FAIL = "fail"
    RESTART_FREE = "restart, not counted"
    RESTART_COUNTED = "restart, counted"


# Codes that a restart cannot help, and codes that cost no attempt; all others but OK are counted.
FAIL_AT_ONCE = (USER_ERROR, INTERRUPTED)
FREE_RESTARTS = (RESTART,)


def of_error(error: BaseException) -> int:
    """What a launcher is to know of an error that ends a process: the same command would fail again, or may not.

    An error that knows its own code has it as `exit_code`.
    """
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILURE
    known = getattr(error, "exit_code", None)
    if known is not None:
        return int(known)
    return USER_ERROR if isinstance(error, ValueError | FileNotFoundError) else FAILURE


def of_returncode(returncode: int) -> int:
    """The code that a shell, SLURM or Kubernetes would report for `subprocess`'s: -9 is 137."""
    return 128 - returncode if returncode < 0 else returncode


def after_exit(code: int) -> AfterExit:
    """What the code of the first process that ended means for the whole job (`of_returncode` of it, if it came from
    subprocess).
    """
    if code == OK:
        return AfterExit.DONE
    if code in FAIL_AT_ONCE:
        return AfterExit.FAIL
    return AfterExit.RESTART_FREE if code in FREE_RESTARTS else AfterExit.RESTART_COUNTED
