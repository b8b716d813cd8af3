"""The exported folder run by PyTorch, beside our own sampling of the same weights, picture, voice and seed."""

import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from omnihuman_jax.commands import export, generate
from omnihuman_jax.evaluation import sheet
from omnihuman_jax.evaluation.psnr import psnr
from omnihuman_jax.serving import media_omnihuman
from tests.gpu.results import Row
from tests.sampling import tiny_run

# Pictures of a random model, whose values are anywhere: 30 dB is what bfloat16 keeps of them.
LEAST_DB = {"float32": 45.0, "bfloat16": 25.0}


def compare(folder: Path, device: str) -> list[Row]:
    """Rows of every way to run it there; one that says so where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return [Row(what="exported pipeline", note="left out: torch is not installed")]
    shutil.rmtree(folder, ignore_errors=True)
    tiny = tiny_run.make(folder / "tiny")
    export.export_run(tiny.run, folder / "model")
    talking = folder / "talking.mp4"
    frames = sheet.to_uint8(tiny_run.moving_picture(5, 30, 64, 96))
    media_omnihuman.write_video(talking, frames, audio=0.3 * np.sin(np.arange(30 * 640) / 9).astype(np.float32))
    inputs = ["--image", str(talking), "--audio", str(talking), "--size", "32x48", "--seconds", "0.36", "--seed", "3"]
    inputs += ["--steps", "4"]
    generate.main(["--run", str(tiny.run), *inputs, "--out", str(folder / "ours.mp4")])
    ours = pictures(folder / "ours.mp4")
    rows = []
    ways = [("float32", False), ("bfloat16", True)] if device == "cuda" else [("float32", False)]
    for dtype, compiled in ways:
        out = folder / f"{dtype}.mp4"
        words = ["--out", str(out), "--device", device, "--dtype", dtype, *["--compile"] * compiled]
        began = time.perf_counter()
        subprocess.run([sys.executable, "pipeline_omnihuman.py", *inputs, *words], cwd=folder / "model", check=True)
        seconds = time.perf_counter() - began
        name = f"PyTorch on {device}, {dtype}{', compiled' * compiled}"
        short = LEAST_DB[dtype] - psnr(pictures(out), ours)
        rows.append(Row(what=f"{name}: dB below what it must share with ours", value=short, unit="dB", limit=0))
        rows.append(Row(what=f"{name}: the whole command", value=seconds, unit="s"))
    return rows


def pictures(path: Path) -> np.ndarray:
    """All frames, float32 in [-1, 1]."""
    return sheet.to_float(np.stack(list(media_omnihuman.iter_video(path))))
