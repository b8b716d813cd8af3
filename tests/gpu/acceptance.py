"""The acceptance of one NVIDIA GPU: one command, under ten minutes, a table and JSON.

    pip install -e . 'jax[cuda12]'
    python -m tests.gpu.acceptance --out runs/gpu
    python -m tests.gpu.acceptance --out runs/gpu --platform cpu       # the same checks, tiny: does the script work?

Every check is a process of its own with its own time limit: one that fails, hangs or runs out of memory is a row, and
the next one begins. Exit code 0: all rows are within their limits.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import quick_xla
from tests.gpu.results import Row, versions

ROOT = Path(__file__).resolve().parents[2]
TOTAL_S = 590.0
# Seconds of each check, in the order in which they run: what matters most is first.
LIMITS = {
    "attention": 90, "train_step": 110, "plan": 40, "resume": 90, "bfloat16_losses": 100, "encode": 90,
    "export": 110, "train_step_attention": 90, "train_step_offload": 90,
}  # fmt: skip

# A busy CPU compiles slowly, and its times are of nobody's interest.
PATIENCE = {"full": 1, "tiny": 4}


def run_check(name: str, size: str, out: Path, limit_s: float) -> list[Row]:
    """The rows of a check in a process of its own; a row that says what was wrong where it gave none."""
    result = out / f"{name}.json"
    result.unlink(missing_ok=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if size == "tiny":
        environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick_xla.FLAGS}
    # Checks of the same machine share what it compiles; a GPU's memory is taken as it is needed, and given back.
    environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [sys.executable, "-m", "tests.gpu.checks", name, size, str(out)]
    log = out / f"{name}.log"
    with log.open("w") as file:
        try:
            subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, timeout=limit_s, check=True
            )
        except subprocess.TimeoutExpired:
            return [Row(what=name, failed=True, note=f"stopped after {limit_s:.0f} s; see {log}")]
        except subprocess.CalledProcessError as error:
            return [Row(what=name, failed=True, note=f"exit {error.returncode}: {last_line(log)}")]
    return [Row(**row) for row in json.loads(result.read_text())]


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it printed nothing"


def accept(out: Path, size: str, names: Sequence[str], *, total_s: float = TOTAL_S) -> dict[str, Any]:
    """Runs the checks, writes OUT/acceptance.json after each of them, and returns what is in it."""
    out.mkdir(parents=True, exist_ok=True)
    began, checks = time.monotonic(), []
    result: dict[str, Any] = {"size": size, "versions": versions(), "ok": False, "checks": checks}
    for name in names:
        left = total_s - (time.monotonic() - began)
        start = time.monotonic()
        if left < 5:
            rows = [Row(what=name, failed=True, note=f"left out: the {total_s:.0f} s are over")]
        else:
            rows = run_check(name, size, out, min(LIMITS[name] * PATIENCE[size], left))
        # A plain dict: JSON has no NaN.
        lines = [
            {**{k: v if v == v and v not in (float("inf"),) else str(v) for k, v in vars(row).items()}, "ok": row.ok}
            for row in rows
        ]
        checks.append({"check": name, "seconds": round(time.monotonic() - start, 1), "rows": lines})
        result["ok"] = len(checks) == len(names) and all(line["ok"] for check in checks for line in check["rows"])
        (out / "acceptance.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def print_table(result: dict[str, Any]) -> None:
    """All rows."""
    from rich.console import Console
    from rich.table import Table

    told = result["versions"]
    title = ", ".join(f"{name} {value}" for name, value in told.items() if value)
    table = Table(title=f"{result['size']}: {title}")
    for heading in ("check", "what", "value", "unit", "limit", "", "note"):
        table.add_column(heading, justify="right" if heading in ("value", "limit") else "left", overflow="fold")
    for check in result["checks"]:
        for row in check["rows"]:
            value, limit = ("" if v is None else f"{v:.4g}" if isinstance(v, float | int) else v
                            for v in (row["value"], row["limit"]))  # fmt: skip
            mark = "FAILED" if not row["ok"] else "ok" if row["limit"] is not None else ""
            table.add_row(check["check"], row["what"], value, row["unit"], limit, mark, row["note"])
    Console(width=160, highlight=False).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu.acceptance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="acceptance.json, and a log a check")
    parser.add_argument("--platform", choices=("gpu", "cpu"), default="gpu", help="cpu: tiny sizes, nothing measured")
    parser.add_argument("--only", default=",".join(LIMITS), metavar="A,B", help="checks (default: all)")
    options = parser.parse_args(argv)
    names = [name for name in options.only.split(",") if name]
    if unknown := [name for name in names if name not in LIMITS]:
        parser.error(f"--only {unknown[0]!r} is unknown; it is one or more of {', '.join(LIMITS)}")
    # Absolute: the checks run in the checkout's root, wherever this was started.
    size = "full" if options.platform == "gpu" else "tiny"
    result = accept(options.out.resolve(), size, names, total_s=TOTAL_S * PATIENCE[size])
    print_table(result)
    print(f"{options.out / 'acceptance.json'}: {'all within limits' if result['ok'] else 'NOT accepted'}")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
