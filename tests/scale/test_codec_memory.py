"""A codec compiled for a chip that is not here: the command's numbers are the compiler's."""

import pytest

from omnihuman_jax.scale import codec_memory
from omnihuman_jax.scale.described_devices import describe
from omnihuman_jax.scale.hardware import parse_topology

DUMP = """BufferAssignment:
allocation 0: size 536870912, page 0, parameter 1, shape |f32[2]| at ShapeIndex {}:
allocation 1: size 1073741824, page 0, output shape is |f32[4]|, maybe-live-out:
 value: <1 add @0> (size=99,offset=0): f32[4]
allocation 2: size 2147483648, page 0, preallocated-temp:
allocation 3: size 999, color 1, page 0, preallocated-temp:
allocation 4: size 1073741824, page 0, constant:
"""


def account(frames: int, method: str, *options: str) -> dict[str, float]:
    return codec_memory.measure_assigned("AutoencoderKLWan", method, ["--size", f"{frames}x64x64", *options])


def test_a_dump_is_read_as_the_compilers_account():
    assert codec_memory.assigned(DUMP) == {"arguments": 0.5, "output": 1.0, "temporaries": 3.0, "all": 4.5}


@pytest.mark.slow
def test_memory_grows_with_the_video_by_little_more_than_the_video():
    """Stretch by stretch: twice the frames are twice the frames, and no more of anything else. The released sizes."""
    short, long = account(17, "decode"), account(33, "decode")
    assert short["output"] < long["output"] < 2 * short["output"]
    assert long["temporaries"] < 1.05 * short["temporaries"]


@pytest.mark.slow
def test_what_is_assigned_is_what_the_whole_compilation_says():
    """But for constants and what a thread has of its own, a few MB: the compiled program's account leaves them out."""
    device = describe(parse_topology("v5e:2x2"))[0]
    whole = codec_memory.measure("AutoencoderKLWan", "encode", (1, 1024, 1024), {}, device)
    early = codec_memory.measure_assigned("AutoencoderKLWan", "encode", ["--size", "1x1024x1024"])
    assert {name: early[name] for name in ("arguments", "output")} == {
        name: whole[name] for name in ("arguments", "output")
    }
    assert whole["temporaries"] > 0.2
    assert early["temporaries"] == pytest.approx(whole["temporaries"], abs=0.005)


def test_an_error_of_the_compilation_is_shown():
    with pytest.raises(ValueError, match=r"(?s)did not report its memory.*v5e:9x9"):
        account(17, "decode", "--topology", "v5e:9x9")


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="720x1281: height and width must be multiples of 8"):
        codec_memory.measure("AutoencoderKLWan", "encode", (129, 720, 1281), {}, None)
    with pytest.raises(SystemExit):
        codec_memory.main(["--codec", "AutoencoderKL"])
