"""What went wrong in a run, a line each, for whoever comes in the morning: `incidents.jsonl` of the run folder.

Lines are only ever added; a restart keeps them.
"""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

logger = logging.getLogger(__name__)

FILE = "incidents.jsonl"


def append_line(path: Path, record: Mapping[str, Any]) -> bool:
    """One JSON line in one write, so that lines of several processes never mix; False where it could not be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, (json.dumps(record) + "\n").encode())
        finally:
            os.close(descriptor)
    except OSError as error:  # a full disk must not end a run that could go on
        logger.error("%s could not be written (%s): %s", path, error, json.dumps(record))
        return False
    return True


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of such a file, in order; nothing if there is none."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # cut short by a kill or a full disk
            continue


class Incidents:
    """Notes incidents of one attempt; `note` may be called on every process, process 0 writes."""

    def __init__(self, run_dir: Path):
        self.path = run_dir / FILE

    def note(self, kind: str, details: Mapping[str, Any]) -> None:
        """kind: `checkpoint_rejected`, `save_failed`, `update_skipped`, `rolled_back`, `stopped` ...; and its
        details. Whoever notes one says it in a sentence too; to a log of objects (`telemetry/run_log`) it is a line.
        """
        if jax.process_index() == 0:
            values = {"event": "incident", "incident": kind, **details}
            logger.info("incident: %s", kind, extra={"fields": values})
            append_line(self.path, {"time": time.time(), "incident": kind, **details})
