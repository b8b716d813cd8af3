"""What a real service has of a run, read by its own library.

`python -m tests.telemetry.tracker_readback SERVICE FOLDER` prints one JSON object: runs, steps of the loss (in order),
its values by step, files of samples.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


def of_mlflow(folder: Path) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient()
    (experiment,) = [e for e in client.search_experiments() if e.name == "test"]
    runs = client.search_runs([experiment.experiment_id])
    run = runs[0]
    history = client.get_metric_history(run.info.run_id, "loss")
    folders = client.list_artifacts(run.info.run_id, "samples")
    return {
        "runs": [found.info.run_id for found in runs],
        "steps": sorted(metric.step for metric in history),
        "values": {str(metric.step): metric.value for metric in history},
        "names": sorted(run.data.metrics),
        "config": run.data.params,
        "files": sorted(f.path for each in folders for f in client.list_artifacts(run.info.run_id, each.path)),
        "status": run.info.status,
    }


def of_wandb(folder: Path) -> dict[str, Any]:
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    runs, lines = [], []
    for log in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        runs.append(log.stem.removeprefix("run-"))
        store = DataStore()
        store.open_for_scan(str(log))
        while data := store.scan_data():
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                lines.append({(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items})
    losses = {str(line["step"]): line["loss"] for line in lines if "loss" in line}
    return {
        "runs": runs,
        "steps": [line["step"] for line in lines if "loss" in line],
        "values": losses,
        "names": sorted({name for line in lines for name in line if not name.startswith("_")}),
        "files": sorted(path.name for path in folder.glob("wandb/offline-run-*/files/media/videos/**/*.mp4")),
    }


def of_trackio(folder: Path) -> dict[str, Any]:
    from trackio.sqlite_storage import SQLiteStorage

    runs = SQLiteStorage.get_runs("test")
    lines = SQLiteStorage.get_logs("test", runs[0])
    return {
        "runs": runs,
        "steps": [line["step"] for line in lines if "loss" in line],
        "values": {str(line["step"]): line["loss"] for line in lines if "loss" in line},
        "names": sorted({name for line in lines for name in line}),
        "files": sorted(path.name for path in Path(os.environ["TRACKIO_DIR"]).glob("media/**/*.mp4")),
    }


if __name__ == "__main__":
    read = {"mlflow": of_mlflow, "wandb": of_wandb, "trackio": of_trackio}[sys.argv[1]]
    print(json.dumps(read(Path(sys.argv[2]))))
