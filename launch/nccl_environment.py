"""`python -m launch.nccl_environment SCRIPT ARGUMENTS`: takes the variables that SCRIPT sets, then becomes `python
ARGUMENTS`.

NCCL's plugins for Google's networks come with a script of some forty variables, which changes with the plugin's
version: what the node has is right, a copy of ours would not stay so. The process stays number 1 of its container.
"""

import os
import subprocess
import sys
from pathlib import Path

from omnihuman_jax.runtime import exit_codes


def variables(script: str) -> dict[str, str]:
    """The environment after the script; FileNotFoundError if the node does not have it."""
    if not Path(script).is_file():
        raise FileNotFoundError(
            f"{script} is not there: the node lacks NCCL's plugin; apply its installer (a DaemonSet), or leave"
            " gpu_network.profile out"
        )
    # What the script itself prints belongs to the log, not to the answer.
    line = 'set -a; . "$1" >&2; exec env -0'
    done = subprocess.run(["bash", "-c", line, "nccl_environment", script], stdout=subprocess.PIPE, check=True)
    return dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0") if "=" in entry)


def main() -> None:
    script, *arguments = sys.argv[1:]
    try:
        environment = variables(script)
    except FileNotFoundError as error:
        print(f"launch.nccl_environment: {error}", file=sys.stderr, flush=True)
        sys.exit(exit_codes.USER_ERROR)
    os.execve(sys.executable, [sys.executable, *arguments], environment)


if __name__ == "__main__":
    main()
