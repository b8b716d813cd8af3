"""Memory that a full-size video codec takes on a chip: encode and decode compiled ahead of time for a TPU that is not
here.

    python -m omnihuman_jax.scale.codec_memory --codec AutoencoderKLWan --method decode

The compiler's own account of the whole program, with the released sizes and no weights; a program that does not fit is
its error. What it assigns to buffers is decided, and dumped, before it generates machine code; that takes a convolution
seconds of a core, and a tiled program holds the network once for each shape of tile. So each program is compiled in a
process of its own that is ended when the account is written; `--whole` compiles to the end, and gives the same numbers.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omnihuman_jax.scale.described_devices import describe as described_devices
from omnihuman_jax.scale.described_devices import prepare
from omnihuman_jax.scale.hardware import parse_topology
from omnihuman_jax.typing import SPATIAL_STRIDE, latent_frames_of

GIB = 2**30
METHODS = ("encode", "decode")


def measure(
    kind: str, method: str, size: tuple[int, int, int], options: dict[str, Any], device: Any, config: Any = None
) -> dict[str, float]:
    """GiB of arguments, output and temporaries of `method` on one window of `size` (frames, height, width) in bfloat16.

    Args:
        kind: `_class_name` of the autoencoder.
        method: `encode` or `decode`.
        size: 1 + 4n frames, height and width in multiples of 8.
        options: of the codec.
        device: what to compile for.
        config: sizes of the network; the released ones by default.

    Raises:
        ValueError: the program needs more than the chip has, with the compiler's numbers.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from omnihuman_jax.codecs import vae_codec

    config = config or vae_codec.FAMILIES[kind].config()
    settings = vae_codec.options_of(kind, {"dtype": "bfloat16"} | options)
    frames, height, width = size
    if height % SPATIAL_STRIDE or width % SPATIAL_STRIDE:
        raise ValueError(f"size {height}x{width}: height and width must be multiples of {SPATIAL_STRIDE}")
    shape = (frames, height, width, 3)
    if method == "decode":
        shape = (latent_frames_of(frames), height // SPATIAL_STRIDE, width // SPATIAL_STRIDE, config.latent_channels)

    def on_device(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=SingleDeviceSharding(device))

    params = jax.tree.map(on_device, vae_codec.describe(kind, config, vae_codec.compute_dtype(settings))[0])
    traced = vae_codec.run.trace(
        method, kind, config, settings, params, on_device(jax.ShapeDtypeStruct(shape, jnp.float32))
    )
    start = time.monotonic()
    try:
        memory = traced.lower(lowering_platforms=(device.platform,)).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(f"{kind}, {method}: does not fit: {str(error).splitlines()[0]}") from None
    assert memory is not None  # every TPU compiler gives it
    sizes = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
    names = ("arguments", "output", "temporaries")
    measured = {name: value / GIB for name, value in zip(names, sizes, strict=True)}
    return measured | {"all": sum(measured.values()), "seconds": time.monotonic() - start}


def assigned(text: str) -> dict[str, float]:
    """GiB in HBM of arguments, output, temporaries and all, from XLA's dump of a buffer assignment.

    Constants count as temporaries here; a compiled program's own account leaves them out (a few MB).
    """
    sizes = {"arguments": 0, "output": 0, "temporaries": 0}
    for size, what in re.findall(r"^allocation \d+: size (\d+), (.*)$", text, re.MULTILINE):
        if not re.search(r"\bcolor [1-9]", what):  # colours are memories on the chip
            kind = "arguments" if "parameter " in what else "output" if "output shape" in what else "temporaries"
            sizes[kind] += int(size)
    return {name: size / GIB for name, size in (sizes | {"all": sum(sizes.values())}).items()}


def measure_assigned(kind: str, method: str, argv: Sequence[str]) -> dict[str, float]:
    """What `measure` gives, from this command with `argv` in a process that is ended once its buffers are assigned.

    Raises:
        ValueError: the program does not fit, or did not compile, with what was printed.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "stderr"
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={scratch} --xla_dump_hlo_as_text"
        command = [
            sys.executable,
            "-m",
            "omnihuman_jax.scale.codec_memory",
            *argv,
            "--codec",
            kind,
            "--method",
            method,
            "--whole",
        ]
        with log.open("wb") as stderr:
            child = subprocess.Popen(
                command, env=os.environ | {"XLA_FLAGS": flags}, stdout=subprocess.DEVNULL, stderr=stderr
            )
        try:
            while (sizes := _account(Path(scratch))) is None and child.poll() is None:
                time.sleep(0.5)
        finally:
            child.kill()
            child.wait()
        if sizes is None:
            raise ValueError(
                f"{kind}, {method}: the compiler did not report its memory\n{log.read_text(errors='replace').strip()}"
            )
        return sizes | {"seconds": time.monotonic() - start}


def _account(dump: Path) -> dict[str, float] | None:
    """`assigned`, once its sum is the total of the compiler's report: both files are then written to their ends."""
    texts = []
    for what in ("memory-usage-report", "buffer-assignment"):
        if not (file := next(iter(dump.glob(f"*jit_run*.after_optimizations-{what}.txt")), None)):
            return None
        texts.append(file.read_text())
    sizes = assigned(texts[1])
    total = re.search(r"^Memory Space: default.*\nTotal bytes: (\d+) ", texts[0])
    return sizes if total and round(sizes["all"] * GIB) == int(total[1]) else None


def _size(text: str) -> tuple[int, int, int]:
    try:
        frames, height, width = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not FRAMESxHEIGHTxWIDTH, e.g. 129x720x1280") from None
    return frames, height, width


def _without_choice(options: argparse.Namespace) -> list[str]:
    """The options of a command for one program, but for which one."""
    given = [part for option in options.codec_option for part in ("--codec-option", option)]
    return ["--size", "x".join(map(str, options.size)), "--topology", options.topology, *given]


def main(argv: Sequence[str]) -> int:
    """`python -m omnihuman_jax.scale.codec_memory`: a Markdown row a program; 1 if one does not fit."""
    parser = argparse.ArgumentParser(
        prog="python -m omnihuman_jax.scale.codec_memory",
        description=(
            "Memory of a full-size video codec on one TPU chip, by ahead-of-time compilation (bfloat16, no weights)."
        ),
        epilog="example: python -m omnihuman_jax.scale.codec_memory --codec AutoencoderKLWan --method decode",
    )
    parser.add_argument(
        "--codec", action="append", metavar="CLASS", help="repeatable; default: every one that there is"
    )
    parser.add_argument("--method", action="append", choices=METHODS, help="repeatable; default: both")
    parser.add_argument("--size", type=_size, default=(129, 720, 1280), metavar="TxHxW", help="default: 129x720x1280")
    parser.add_argument(
        "--topology", default="v5e:2x2", help="of whose chips one is compiled for (default: %(default)s)"
    )
    parser.add_argument(
        "--codec-option", action="append", default=[], metavar="NAME=VALUE", help="such as tile_height=0"
    )
    parser.add_argument(
        "--whole", action="store_true", help="compile to machine code (a quarter of an hour a program and more)"
    )
    options = parser.parse_args(argv)
    prepare()
    from omnihuman_jax.codecs.codec import parse_options
    from omnihuman_jax.codecs.vae_codec import FAMILIES

    if unknown := sorted(set(options.codec or ()) - FAMILIES.keys()):
        parser.error(f"--codec {unknown[0]}: one of {', '.join(FAMILIES)}")
    try:
        topology = parse_topology(options.topology)
        device = described_devices(topology)[0]
        given = parse_options(options.codec_option)
    except ValueError as error:
        parser.error(str(error))
    limit = topology.accelerator.hbm_bytes / GIB
    failed = 0
    title = f"codec, {'x'.join(map(str, options.size))}, {options.topology}"
    print(f"| {title} | arguments | output | temporaries | all | of {limit:.2f} GiB |")
    print("|---|---|---|---|---|---|", flush=True)
    for kind in options.codec or FAMILIES:
        for method in options.method or METHODS:
            print(
                f"compiling {kind} {method} ({'many minutes' if options.whole else 'a minute or two'})", file=sys.stderr
            )
            try:
                if options.whole:
                    seen = measure(kind, method, options.size, given, device)
                else:
                    seen = measure_assigned(kind, method, _without_choice(options))
            except ValueError as error:
                print(error, file=sys.stderr)
                failed = 1
                continue
            columns = " | ".join(f"{seen[name]:.2f} GiB" for name in ("arguments", "output", "temporaries", "all"))
            noted = "".join(f", {name}={value}" for name, value in given.items())
            print(f"| {kind}, {method}{noted} | {columns} | {seen['all'] / limit:.0%} |", flush=True)
            print(f"{'compiled' if options.whole else 'buffers assigned'} in {seen['seconds']:.0f} s", file=sys.stderr)
            failed |= seen["all"] > limit
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
