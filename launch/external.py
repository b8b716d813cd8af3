"""The clouds' own tools, called by argv: kubectl, gcloud, sbatch. No shell, no client library."""

import shutil
import subprocess
from collections.abc import Iterable, Sequence

CURES = {
    "kubectl": "install kubectl and point it to the cluster (gcloud container clusters get-credentials)",
    "gcloud": "install the Google Cloud CLI and log in",
}


def find(tool: str) -> str:
    """Where the tool is; FileNotFoundError names it, and what to do."""
    path = shutil.which(tool)
    if path is None:
        cure = CURES.get(tool, "run this on a login node of the cluster")
        raise FileNotFoundError(f"{tool} is not on PATH: {cure}; --dry-run shows what would be sent")
    return path


def run(argv: Sequence[str], *, stdin: str | None = None) -> int:
    """Runs a tool with its output on ours; 0, or ChildProcessError with its code (its own message is already there)."""
    path = find(argv[0])
    done = subprocess.run([path, *argv[1:]], input=stdin, text=True, check=False)
    if done.returncode:
        raise ChildProcessError(f"{argv[0]} {argv[1]} exited with {done.returncode}, see its message above")
    return 0


def run_all(argvs: Iterable[Sequence[str]]) -> int:
    """Runs every one of them, whatever becomes of the others; 0, or the first one's ChildProcessError at the end."""
    errors: list[ChildProcessError] = []
    for argv in argvs:
        try:
            run(argv)
        except ChildProcessError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return 0


def ask(argv: Sequence[str]) -> str:
    """What a tool prints; ChildProcessError with its last line of error."""
    path = find(argv[0])
    done = subprocess.run([path, *argv[1:]], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ChildProcessError(f"{' '.join(argv[:5])} exited with {done.returncode}: {last}")
    return done.stdout.strip()
