"""`make parity`: runs every test that compares ours with an original library and writes their figures into
docs/parity.md.

    python -m tests.parity.table

Only what stands between the two markers is written; the rest of the page is prose. Fails, and leaves the page as it
was, if a test fails.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "parity.md"
TESTS = ("tests/parity", "tests/interop", "tests/encoders/test_wav2vec2.py", "tests/serving/test_pipeline_omnihuman.py")
# What tests/conftest.py takes as it is: the figures are of the programs that users run.
OPTIMISED = "--xla_force_host_platform_device_count=8"
BEGIN, END = "<!-- table: `make parity` -->", "<!-- end of the table -->"


def measure() -> list[dict]:
    """The figures of the quick and of the slow parity tests."""
    rows: list[dict] = []
    for slow in ("none", "all"):
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "figures.json"
            options = ["-q", f"--slow={slow}", f"--figures={file}", "--ignore=tests/parity/test_table.py"]
            environment = os.environ | {"XLA_FLAGS": OPTIMISED}
            command = [sys.executable, "-m", "pytest", *options, *TESTS]
            code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
            if code not in (0, 5):  # 5: no test of this kind
                raise SystemExit(code)
            rows += json.loads(file.read_text())
    return rows


def largest(rows: list[dict]) -> list[dict]:
    """One row a claim, with the largest value: some are measured by quick and by slow tests."""
    found: dict[str, dict] = {}
    for row in sorted(rows, key=lambda row: row["value"]):
        found[row["claim"]] = row
    return list(found.values())


def table(rows: list[dict]) -> str:
    """The rows as Markdown, sorted by test and claim."""
    lines = ["| claim | seen | limit | test |", "|---|---|---|---|"]
    for row in sorted(largest(rows), key=lambda row: (row["test"], row["claim"])):
        lines.append(f"| {row['claim']} | {_figure(row['value'], 1)} | {_figure(row['limit'], 0)} | `{row['test']}` |")
    return "\n".join(lines)


def _figure(value: float, digits: int) -> str:
    return f"{value:.{digits}e}" if value else "0"


def replaced(page: str, new: str) -> str:
    """`page` with `new` between the markers; ValueError if it does not have each of them once, in order."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"{PAGE}: needs the markers {BEGIN} and {END} once each, in this order")
    return f"{before}{BEGIN}\n{new}\n{END}{after}"


def main() -> None:
    replaced(PAGE.read_text(), "")  # before the tests run
    new = table(measure())
    PAGE.write_text(replaced(PAGE.read_text(), new))
    print(f"{PAGE.relative_to(ROOT)}: written")


if __name__ == "__main__":
    main()
