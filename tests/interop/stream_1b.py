"""`make weights-1b`: a 1 B model in, and out again, with what the host held beside the arrays. Prints the table of
docs/parity.md.

    python -m tests.interop.stream_1b SCRATCH_DIR [--devices 8]

The model has HunyuanVideo's own widths (3072, 24 heads, text 4096), so its tensors are those of the 13 B model, and
fewer
blocks: 1 dual, 4 single, 2 of the refiner. Random bfloat16 weights, written tensor by tensor, in shards with an index.

Each row is a process of its own, which first does the same with a tiny model: libraries, compilers and thread pools are
there then. What it holds at that moment is the base; the peak is the kernel's own high-water mark of the resident set
(VmHWM, reset after the base was read), mapped file pages included. `beside` = peak - base - bytes of the arrays: of
what all devices hold, in float32, a leaf that is not split as often as it is copied (the tiny model's are gone by
then). An export has no arrays: it streams from the checkpoint to the file. The import's peak is also read before it
begins to write the checkpoint, when the tensors are in.
"""

import argparse
import ctypes
import gc
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MB = 1e6
TENSOR_BOUND = 1.5
COMPARED = "export-diffusers-bf16"
JOBS = ("import", "export-diffusers-fp32", COMPARED, "export-torch-fp32", "export-torch-bf16")
SIZES: dict[str, dict[str, Any]] = {
    "1b": {"num_layers": 1, "num_single_layers": 4},
    "tiny": {
        "num_layers": 1, "num_single_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 8,
        "attention_head_dim": 16,
        "rope_axes_dim": [4, 6, 6], "text_embed_dim": 64, "pooled_projection_dim": 32,
    },
}  # fmt: skip


def write_model(folder: Path, size: str) -> None:
    """A random model in diffusers' layout; one tensor in memory at a time."""
    import ml_dtypes
    import numpy as np

    from omnihuman_jax.interop import hunyuan_video, key_table, safetensors_io

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": hunyuan_video.CLASS, **SIZES[size]}))
    model = hunyuan_video.model_config(folder)
    (folder / "config.json").write_text(json.dumps(hunyuan_video.diffusers_config(model), indent=2))
    rng = np.random.default_rng(0)
    bfloat16 = np.dtype(ml_dtypes.bfloat16)

    def source(entry: key_table.Entry) -> safetensors_io.TensorSource:
        draw = lambda: [(rng.standard_normal(entry.shape, np.float32) * np.float32(0.02)).astype(bfloat16)]  # noqa: E731
        return safetensors_io.TensorSource(name=entry.name, shape=entry.shape, dtype=bfloat16, parts=draw)

    entries = key_table.key_table(model).entries
    safetensors_io.write_folder(
        folder, [source(entry) for entry in entries], stem=hunyuan_video.STEM, max_shard_bytes=1_000_000_000
    )


def status(field: str) -> int:
    """Bytes that /proc/self/status states for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def measure(run: Callable[[Path, Callable[[], None]], int], tiny: Path, full: Path) -> dict[str, float]:
    """Runs on the tiny model, then on the full one: bytes held beside the arrays, and seconds.

    `run` calls back when the tensors are read, and returns the bytes of the arrays that it made.
    """
    run(tiny, lambda: None)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the C library keeps for later would hide what comes
    base, read = status("VmRSS"), [0]
    Path("/proc/self/clear_refs").write_text("5")
    begin = time.monotonic()
    arrays = run(full, lambda: read.append(status("VmHWM")))
    seconds = time.monotonic() - begin
    return {"arrays": arrays, "beside": status("VmHWM") - base - arrays, "read": read[-1] - base - arrays, "s": seconds}


def work(job: str, scratch: Path) -> None:
    """One row, in this process; prints a line of JSON."""
    from omnihuman_jax.commands import export, import_weights
    from omnihuman_jax.interop import model_sources

    def run(folder: Path, tensors_are_read: Callable[[], None]) -> int:
        size = folder.name
        if job == "import":
            shutil.rmtree(scratch / "imported" / size, ignore_errors=True)
            source = model_sources.open_hunyuan_video(folder)
            watch = lambda text, done, total: tensors_are_read() if text.startswith("writing") else None  # noqa: E731
            done = import_weights.import_weights(source, scratch / "imported" / size, progress=watch)
            return done.nbytes
        _, form, dtype = job.split("-")
        export.export_run(scratch / "imported" / size, scratch / job / size, form=form, dtype=dtype)
        if job != COMPARED:
            shutil.rmtree(scratch / job)
        return 0

    print("MEASURED " + json.dumps(measure(run, scratch / "tiny", scratch / "1b")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path, help="folder for about 20 GB; what is in it is kept and used")
    parser.add_argument("--devices", type=int, default=8, help="simulated devices that share the model (%(default)s)")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    scratch = options.scratch.absolute()
    if options.job:
        work(options.job, scratch)
        return 0
    from omnihuman_jax.interop import hunyuan_video, key_table, safetensors_io

    for size in SIZES:
        if not (scratch / size).is_dir():
            write_model(scratch / f"{size}.incomplete", size)
            (scratch / f"{size}.incomplete").rename(scratch / size)
    tensors = safetensors_io.open_folder(scratch / "1b", hunyuan_video.STEM)
    table = key_table.key_table(hunyuan_video.model_config(scratch / "1b"))
    largest = max(int(4 * math.prod(info.shape)) for info in tensors.values())
    leaf = max(int(4 * math.prod(shape)) for shape in table.shapes.values())
    parameters = sum(math.prod(info.shape) for info in tensors.values())
    print(
        f"{parameters / 1e9:.2f} B parameters; largest tensor {largest / MB:.0f} MB in fp32, bound {TENSOR_BOUND} x"
        f" that = {TENSOR_BOUND * largest / MB:.0f} MB; largest stacked leaf {leaf / MB:.0f} MB\n"
    )
    print("| | arrays | peak beside them | of the largest tensor | seconds |\n|---|---|---|---|---|")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={options.devices}",
    }  # fmt: skip
    fits = True
    for job in JOBS:
        command = [sys.executable, "-m", "tests.interop.stream_1b", str(scratch), "--job", job]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("MEASURED ")]
        if done.returncode or not lines:
            print(done.stdout, done.stderr, file=sys.stderr)
            return 1
        row = json.loads(lines[0].removeprefix("MEASURED "))
        peaks = (
            {job: row["beside"]}
            if job != "import"
            else {"import: tensors read": row["read"], "import: whole": row["beside"]}
        )
        for name, peak in peaks.items():
            fits &= peak <= TENSOR_BOUND * largest
            print(
                f"| {name} | {row['arrays'] / MB:.0f} MB | {peak / MB:.0f} MB | {peak / largest:.2f} |"
                f" {row['s']:.0f} |",
                flush=True,
            )
    back = scratch / COMPARED / "1b"
    ours = safetensors_io.open_folder(back, hunyuan_video.STEM)
    same = ours.keys() == tensors.keys() and all(
        bytes_equal(safetensors_io.read_tensor(ours[name]), safetensors_io.read_tensor(info))
        for name, info in tensors.items()
    )
    print(
        f"\nimport, then export in bf16: {'bit-identical' if same else 'NOT THE SAME'}; {'inside' if fits else 'OVER'}"
        " the bound"
    )
    return 0 if same and fits else 1


def bytes_equal(a: Any, b: Any) -> bool:
    """Same dtype, shape and bits."""
    import numpy as np

    return a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(a.view(np.uint16), b.view(np.uint16)))


if __name__ == "__main__":
    sys.exit(main())
