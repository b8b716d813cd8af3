"""Memory that a full-size video codec takes on a chip: encode and decode compiled ahead of time for a TPU that is not here.

    python -m omnihuman_jax.scale.codec_memory --codec AutoencoderKLWan --method decode

The compiler's own account of the whole program, with the released sizes and no weights; a program that does not fit is its
error. A convolution takes it seconds, and a tiled program holds the network once for each shape of tile.
"""

import argparse
import sys
import time
from collections.abc import Sequence
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

    from omnihuman_jax.models import vae_codec

    config = config or vae_codec.FAMILIES[kind].config()
    settings = vae_codec.options_of(kind, {"dtype": "bfloat16"} | options)
    frames, height, width = size
    if height % SPATIAL_STRIDE or width % SPATIAL_STRIDE:
        raise ValueError(f"size {height}x{width}: multiples of {SPATIAL_STRIDE}")
    shape = (frames, height, width, 3)
    if method == "decode":
        shape = (latent_frames_of(frames), height // SPATIAL_STRIDE, width // SPATIAL_STRIDE, config.latent_channels)

    def on_device(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=SingleDeviceSharding(device))

    params = jax.tree.map(on_device, vae_codec.describe(kind, config, vae_codec.compute_dtype(settings))[0])
    traced = vae_codec.run.trace(method, kind, config, settings, params, on_device(jax.ShapeDtypeStruct(shape, jnp.float32)))
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


def _size(text: str) -> tuple[int, int, int]:
    try:
        frames, height, width = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not FRAMESxHEIGHTxWIDTH, e.g. 129x720x1280") from None
    return frames, height, width


def main(argv: Sequence[str]) -> int:
    """`python -m omnihuman_jax.scale.codec_memory`: a Markdown row a program; 1 if one does not fit."""
    parser = argparse.ArgumentParser(
        prog="python -m omnihuman_jax.scale.codec_memory",
        description="Memory of a full-size video codec on one TPU chip, by ahead-of-time compilation (bfloat16, no weights).",
        epilog="example: python -m omnihuman_jax.scale.codec_memory --codec AutoencoderKLWan --method decode",
    )
    parser.add_argument("--codec", action="append", metavar="CLASS", help="repeatable; default: every one that there is")
    parser.add_argument("--method", action="append", choices=METHODS, help="repeatable; default: both")
    parser.add_argument("--size", type=_size, default=(129, 720, 1280), metavar="TxHxW", help="default: 129x720x1280")
    parser.add_argument("--topology", default="v5e:2x2", help="of whose chips one is compiled for (default: %(default)s)")
    parser.add_argument("--codec-option", action="append", default=[], metavar="NAME=VALUE", help="such as tile_height=0")
    options = parser.parse_args(argv)
    prepare()
    from omnihuman_jax.models.codec import parse_options
    from omnihuman_jax.models.vae_codec import FAMILIES

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
            print(f"compiling {kind} {method} (minutes)", file=sys.stderr)
            try:
                seen = measure(kind, method, options.size, given, device)
            except ValueError as error:
                print(error, file=sys.stderr)
                failed = 1
                continue
            columns = " | ".join(f"{seen[name]:.2f} GiB" for name in ("arguments", "output", "temporaries", "all"))
            noted = "".join(f", {name}={value}" for name, value in given.items())
            print(f"| {kind}, {method}{noted} | {columns} | {seen['all'] / limit:.0%} |", flush=True)
            print(f"compiled in {seen['seconds']:.0f} s", file=sys.stderr)
            failed |= seen["all"] > limit
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
