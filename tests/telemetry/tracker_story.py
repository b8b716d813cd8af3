"""Two starts of one run, told to a real service: `python -m tests.telemetry.tracker_story SERVICE FOLDER FINISHED`.

A process of its own for each start, which needs the service's library and neither JAX nor the rest of this
environment. FINISHED: steps before this start; it writes the four after them, shows one sample, and prints its
warnings.
"""

import logging
import sys
import time
from pathlib import Path

from omnihuman_jax.telemetry import trackers, tracking_services

CONFIG = {"name": "a run", "stages": {"rows": [{"steps": 5, "text": 0.9}]}}


def tell(service: str, folder: Path, finished: int) -> None:
    """The four steps after `finished`."""
    run = trackers.TrackedRun(folder=folder, project="test", name="tiny", step=finished, config=CONFIG)
    (tracker,) = tracking_services.open_services(run, service, tensorboard=False)
    for step in range(finished + 1, finished + 5):
        tracker.write({"step": step, "stage": "audio", "loss": 1.0 / step, "loss/text+audio": 0.5})
    tracker.show(finished + 4, "face", folder / "face.mp4", folder / "face.png")
    began = time.monotonic()
    tracker.close()
    print(f"closed in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    # A new MLflow database is half a minute's work on a busy machine.
    trackers.CLOSE_S = 200.0
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    tell(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
