"""`omnihuman <command>`: one command a room, imported only when it is called.

Every command is a module with `main(argv) -> int`. User errors (ValueError, FileNotFoundError and the like) print one
line and exit with 2; anything else is a bug and shows its traceback. Nothing here imports JAX: `--simulate-devices`
has to set XLA's flags first.
"""

import argparse
import contextlib
import dataclasses
import importlib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Sequence

from omnihuman_jax.runtime import exit_codes, file_names, platform_flags, signals

USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
    FileExistsError,
    PermissionError,
    ConnectionError,
    ChildProcessError,
)
# Their errors are of no class that Python has.
_STORAGE_CLIENTS = frozenset({"gcsfs", "aiohttp", "botocore", "aiobotocore"})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A subcommand: the module whose `main(argv)` it calls, one line of help, and an example that can be pasted.

    restarts: a launcher starts it again after SIGTERM, so that it answers from its first import on.
    """

    module: str
    help: str
    example: str
    restarts: bool = False


COMMANDS: dict[str, Command] = {
    "demo": Command(
        module="omnihuman_jax.commands.demo",
        help="the whole story on sample media: curate, encode, train, stop, resume, generate, evaluate, export, report",
        example="omnihuman demo --out runs/demo",
    ),
    "sample-media": Command(
        module="data_pipelines.sample_media",
        help="download and verify the sample clips and the demo's two small networks",
        example="omnihuman sample-media --out runs/demo/media",
    ),
    "theatre": Command(
        module="data_pipelines.puppet_theatre.theatre",
        help="draw people who speak, with the truth about every frame: data to check training against",
        example="omnihuman theatre --out runs/theatre --hours 0.25 --seed 0 --programme faces",
    ),
    "curate": Command(
        module="data_pipelines.curate.curate_command",
        help="cut videos into clips, score them, tag each with the conditions that it can train: a table with sets",
        example="omnihuman curate --source my_videos --out runs/mine/clips",
    ),
    "select": Command(
        module="data_pipelines.curate.selection",
        help="other thresholds on the scores of a table, and what they would give; opens no video",
        example="omnihuman select runs/mine/clips --out runs/mine/strict --sweep min_lip_sync_confidence=0.2:0.6:0.05",
    ),
    "encode": Command(
        module="data_pipelines.encode.encode",
        help="clips -> latents, text, speech and pose features, and the catalog",
        example=(
            "omnihuman encode runs/mine/clips --out runs/mine/dataset --codec dct "
            "--text-encoder MINILM_DIR --speech-encoder WHISPER_DIR"
        ),
    ),
    "data": Command(
        module="omnihuman_jax.commands.data",
        help="what is wrong with a data set (check), what is in it (report), a pose out of its clips (pose)",
        example="omnihuman data check runs/mine/dataset",
    ),
    "plan": Command(
        module="omnihuman_jax.commands.plan",
        help=(
            "what training would see of its data; with --topology, what a step would cost on a pod (no TPU needed);"
            " with --prices, the whole schedule in money and days"
        ),
        example="omnihuman plan --config configs/omnihuman_13b.py:720p --topology v5p:8x8x8 --micro-batch 1",
    ),
    "packing": Command(
        module="omnihuman_jax.commands.packing",
        help="what attention saves by leaving out the blocks between the windows of a pack",
        example="omnihuman packing --config configs/omnihuman_7b.py",
    ),
    "train": Command(
        module="omnihuman_jax.commands.train",
        help="train, or continue where the run folder stopped: the same command for both",
        example="omnihuman --simulate-devices 8 train --config configs/demo.py --run runs/mine/run",
        restarts=True,
    ),
    "submit": Command(
        module="launch.submit",
        help=(
            "a run spec -> GKE (JobSet), TPU VMs (queued resources), SLURM, or processes of this machine; checked first"
        ),
        example="omnihuman submit launch/examples/v5p.yaml --target jobset --dry-run",
    ),
    "status": Command(
        module="launch.status",
        help="what a submitted job does now",
        example="omnihuman status launch/examples/v5p.yaml --target jobset",
    ),
    "logs": Command(
        module="launch.logs",
        help="what a process of a submitted job prints",
        example="omnihuman logs launch/examples/v5p.yaml --target jobset --rank 0 --follow",
    ),
    "cancel": Command(
        module="launch.cancel",
        help="end a submitted job: its processes save first",
        example="omnihuman cancel launch/examples/v5p.yaml --target jobset",
    ),
    "import": Command(
        module="omnihuman_jax.commands.import_weights",
        help="open weights (HunyuanVideo in diffusers' layout), or an exported model -> a checkpoint to start from",
        example="omnihuman import hunyuan-video --from HunyuanVideo/transformer --to runs/hunyuan_video",
    ),
    "replay": Command(
        module="omnihuman_jax.commands.replay",
        help="a step that went wrong again: its batch out of the plan, loss and gradient of each window",
        example="omnihuman replay --run runs/mine/run 1234",
    ),
    "bench-checkpoint": Command(
        module="omnihuman_jax.commands.bench_checkpoint",
        help="what a checkpoint costs on this disk: how long training waits, how fast it is written",
        example="omnihuman --simulate-devices 4 bench-checkpoint --out runs/bench --gib 1",
    ),
    "generate": Command(
        module="omnihuman_jax.commands.generate",
        help="an image, a voice and/or a pose -> an mp4 with sound",
        example="omnihuman generate --run runs/mine/run --image face.png --audio voice.wav --out talking.mp4",
    ),
    "evaluate": Command(
        module="omnihuman_jax.commands.evaluate",
        help="do the conditions drive the output? samples of held-out windows against the truth",
        example="omnihuman evaluate --run runs/mine/run --clips runs/mine/clips --out runs/mine",
    ),
    "ablate": Command(
        module="omnihuman_jax.commands.ablate",
        help="do the training ratios do what the paper says? arms forked from one checkpoint, compared seed by seed",
        example="omnihuman ablate --suite paper --out runs/ablations --faces runs/theatre --dry-run",
    ),
    "export": Command(
        module="omnihuman_jax.commands.export",
        help="safetensors with a standalone PyTorch module, or for diffusers' own class, in one folder",
        example="omnihuman export runs/mine/run --to runs/mine/export --format torch --weights ema --dtype fp32",
    ),
    "goodput": Command(
        module="omnihuman_jax.commands.goodput",
        help=(
            "where a run's time went, over all its attempts: new steps, repeated ones, compiling, saving, waiting, idle"
        ),
        example="omnihuman goodput runs/mine/run",
    ),
    "report": Command(
        module="omnihuman_jax.commands.report",
        help="one self-contained HTML page of a run: curves, ratios, funnel, evaluation, samples that play",
        example="omnihuman report --run runs/mine",
    ),
}


# What an optional part imports -> the extra that brings it.
_EXTRAS = {"mediapipe": "curation", "hama": "curation", "skia": "theatre", "torch": "torch"}


def _parser() -> argparse.ArgumentParser:
    width = max(len(name) for name in COMMANDS)
    lines = [
        f"  {name:<{width}}  {command.help}\n  {'':<{width}}    $ {command.example}"
        for name, command in COMMANDS.items()
    ]
    parser = argparse.ArgumentParser(
        prog="omnihuman",
        usage="omnihuman [--simulate-devices N] COMMAND [options]",
        description="OmniHuman-1 in JAX: from a folder of videos to a trained, sampled and exported model.",
        epilog="commands, each with an example (`omnihuman COMMAND --help` for its options):\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--simulate-devices",
        type=int,
        metavar="N",
        help="run on N simulated CPU devices instead of what the machine has",
    )
    parser.add_argument("--version", action="version", version=f"omnihuman-jax {_version()}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of user errors too")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("omnihuman-jax")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def simulate_devices(count: int) -> None:
    """Makes JAX start on `count` CPU devices, in this process and its children; ValueError once JAX is imported."""
    if count < 1:
        raise ValueError(f"--simulate-devices {count}: at least 1")
    if "jax" in sys.modules:
        raise ValueError("--simulate-devices has to come before jax is imported")
    flags = [
        flag for flag in os.environ.get("XLA_FLAGS", "").split() if "xla_force_host_platform_device_count" not in flag
    ]
    os.environ["XLA_FLAGS"] = " ".join([*flags, f"--xla_force_host_platform_device_count={count}"])
    os.environ["JAX_PLATFORMS"] = "cpu"


def _one_line(error: BaseException, *, named: bool = False) -> str:
    """What an error says, and its notes; `named`: with its type, which is all that some say."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename or ''}: {error.strerror}".lstrip(": ")
    name, text = type(error).__name__, file_names.printable(text)
    said = f"{name}: {text}" if named and text else text or name
    return "; ".join([said, *(file_names.printable(note) for note in getattr(error, "__notes__", ()))])


def _is_of_storage(error: Exception) -> bool:
    """Whether a bucket's server, or the way to it, is to blame; its client has tried several times by then."""
    broken_off = isinstance(error, TimeoutError | ConnectionResetError | ConnectionAbortedError)
    return broken_off or type(error).__module__.split(".")[0] in _STORAGE_CLIENTS


def _storage_is_away(command: str, error: Exception) -> int:
    why = _one_line(error, named=True)
    print(f"omnihuman {command}: storage does not answer ({why}); try again", file=sys.stderr)
    return exit_codes.RETRY


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit code, or 2 after a one-line user error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # It logs a stack for an error that it raises as well. A run's log has it, at debug (`run_log.set_up`).
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    if not argv:
        _parser().print_help(sys.stderr)
        return exit_codes.USER_ERROR
    options = _parser().parse_args(argv)
    try:
        if options.simulate_devices is not None:
            simulate_devices(options.simulate_devices)
        platform_flags.apply()
        command = COMMANDS[options.command]
        with signals.listening(*signals.STOPS) if command.restarts else contextlib.nullcontext():
            module = importlib.import_module(command.module)
            return int(module.main(list(options.arguments)) or 0)
    except USER_ERRORS as error:
        if options.debug:
            raise
        if _is_of_storage(error):
            return _storage_is_away(options.command, error)
        print(f"omnihuman {options.command}: {_one_line(error)}", file=sys.stderr)
        return exit_codes.USER_ERROR
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if options.debug or extra is None:
            raise
        print(f"omnihuman {options.command}: needs {error.name}; pip install -e '.[{extra}]'", file=sys.stderr)
        return exit_codes.USER_ERROR
    except KeyboardInterrupt:
        print(f"omnihuman {options.command}: interrupted", file=sys.stderr)
        return exit_codes.INTERRUPTED
    except Exception as error:
        if not options.debug and isinstance(code := getattr(error, "exit_code", None), int):
            print(f"omnihuman {options.command}: {_one_line(error)}", file=sys.stderr)
            return code
        if options.debug or not _is_of_storage(error):
            raise
        return _storage_is_away(options.command, error)


def entry_point() -> None:
    """What the console script calls."""
    if set(sys.argv[1:]) & set(COMMANDS):
        platform_flags.restart_for_cpu()
    sys.exit(main())


if __name__ == "__main__":
    entry_point()
