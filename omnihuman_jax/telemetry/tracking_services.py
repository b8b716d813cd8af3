"""The services that a run can be followed at, each as a `trackers.Tracker`. Addresses and secrets come from the
environment alone, by the names that each library itself reads (docs/tracking.md). No JAX.
"""

import functools
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omnihuman_jax.runtime import files
from omnihuman_jax.telemetry.trackers import Detached, TrackedRun, Tracker, named, numbers

# MLflow's own patience is minutes a call.
_MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
_MLFLOW_PARAMS_A_CALL = 100
_MLFLOW_PARAM_LENGTH = 500


def flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(`stages.rows.0.steps`, value) of nested plain values."""
    items = values.items() if isinstance(values, Mapping) else enumerate(values)
    for name, value in items:
        path = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, Mapping | list | tuple):
            yield from flat(value, path)
        else:
            yield path, value


def keep_id(run: TrackedRun, service: str, new: str) -> str:
    """Stores the run's id at a service, and returns it."""
    run.id_file(service).parent.mkdir(parents=True, exist_ok=True)
    files.write_text(run.id_file(service), new + "\n")
    return new


class TensorBoard:
    """Curves and pictures below RUN/tensorboard; what a resume will write again is purged."""

    def __init__(self, run: TrackedRun):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step + 1, flush_secs=30)

    def write(self, record: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        for name, value in numbers(record).items():
            self._writer.add_scalar(board_name(name), value, global_step=record["step"])

    def show(self, step: int, name: str, video: Path, picture: Path) -> None:
        """The picture: TensorBoard plays no video with sound."""
        import numpy as np
        from PIL import Image

        pixels = np.asarray(Image.open(picture).convert("RGB"))
        self._writer.add_image(f"samples/{board_name(name)}", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes."""
        self._writer.close()


def board_name(name: str) -> str:
    """The name of a curve where "+" is illegal: `loss/text+audio` is `loss/text_audio` there."""
    return name.replace("+", "_")


class WeightsAndBiases:
    """W&B: `WANDB_API_KEY`, or `WANDB_MODE=offline` and `wandb sync` later; all else that it reads, too."""

    def __init__(self, run: TrackedRun):
        import wandb

        self._wandb = wandb
        stored = run.stored_id("wandb") or keep_id(run, "wandb", secrets.token_hex(4))
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=stored,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.config),
            settings=wandb.Settings(silent=True, console="off", save_code=False, disable_git=True),
        )
        # Steps that a restart makes again are behind its own counter, which only grows: ours is a value like others.
        self._run.define_metric("*", step_metric="step")

    def write(self, record: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._run.log({"step": record["step"], **numbers(record)})

    def show(self, step: int, name: str, video: Path, picture: Path) -> None:
        """The video, with its sound."""
        self._run.log({"step": step, f"samples/{name}": self._wandb.Video(str(video), format="mp4")})

    def close(self) -> None:
        """Waits for what is on its way."""
        self._run.finish(quiet=True)


class MlFlow:
    """MLflow: the server, or the local store, of `MLFLOW_TRACKING_URI`, with whatever that needs to log in."""

    def __init__(self, run: TrackedRun):
        for name, value in _MLFLOW_PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        stored = run.stored_id("mlflow")
        if stored is None:
            found = self._client.get_experiment_by_name(run.project)
            experiment = found.experiment_id if found else self._client.create_experiment(run.project)
            created = self._client.create_run(experiment, run_name=run.name)
            stored = keep_id(run, "mlflow", created.info.run_id)
            params = [Param(name, str(value)[:_MLFLOW_PARAM_LENGTH]) for name, value in flat(run.config)]
            for begin in range(0, len(params), _MLFLOW_PARAMS_A_CALL):
                self._client.log_batch(stored, params=params[begin : begin + _MLFLOW_PARAMS_A_CALL])
        else:
            self._client.update_run(stored, status="RUNNING")
        self._id = stored

    def write(self, record: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(board_name(name), value, now, record["step"]) for name, value in numbers(record).items()]
        self._client.log_batch(self._id, metrics=metrics)

    def show(self, step: int, name: str, video: Path, picture: Path) -> None:
        """Both files as artifacts of the run."""
        for file in (video, picture):
            self._client.log_artifact(self._id, str(file), artifact_path=f"samples/step_{step:08d}")

    def close(self) -> None:
        """Says that the run has ended; a restart says that it goes on."""
        self._client.set_terminated(self._id)


class Trackio:
    """trackio: local by default; `TRACKIO_SPACE_ID` and `HF_TOKEN` send it to a Space."""

    def __init__(self, run: TrackedRun):
        import trackio

        self._trackio = trackio
        stored = run.stored_id("trackio") or keep_id(run, "trackio", f"{run.name}-{secrets.token_hex(4)}")
        space = os.environ.get("TRACKIO_SPACE_ID")
        self._run = trackio.init(
            project=run.project, name=stored, space_id=space, resume="allow", config=dict(flat(run.config))
        )

    def write(self, record: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._run.log(numbers(record), step=record["step"])

    def show(self, step: int, name: str, video: Path, picture: Path) -> None:
        """The video, with its sound."""
        self._run.log({f"samples/{name}": self._trackio.Video(str(video), format="mp4")}, step=step)

    def close(self) -> None:
        """Waits for what is on its way."""
        self._run.finish()


SERVICES: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MlFlow,
    "trackio": Trackio,
}


def open_services(run: TrackedRun, services: str, *, tensorboard: bool) -> list[Tracker]:
    """TensorBoard, if asked for, and the named services, each in a thread of its own."""
    names = ("tensorboard",) * tensorboard + named(services)
    return [Detached(name, functools.partial(SERVICES[name], run)) for name in names]
