"""A codec compiled for a chip that is not here: the command's numbers are the compiler's."""

import pytest

from omnihuman_jax.models import wan_vae
from omnihuman_jax.scale import codec_memory
from omnihuman_jax.scale.described_devices import describe
from omnihuman_jax.scale.hardware import parse_topology

SMALL = wan_vae.WanVaeConfig(base_dim=8, dim_mult=(1, 1, 1, 1), num_res_blocks=1)


@pytest.mark.slow
def test_memory_grows_with_the_video_by_little_more_than_the_video():
    """Stretch by stretch: twice the frames are twice the frames, and no more of anything else."""
    device = describe(parse_topology("v5e:2x2"))[0]
    short, long = (codec_memory.measure("AutoencoderKLWan", "decode", (n, 64, 64), {}, device, SMALL) for n in (17, 33))
    assert short["output"] < long["output"] < 2 * short["output"]
    assert long["temporaries"] < 2.2 * short["temporaries"]


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="720x1281: multiples of 8"):
        codec_memory.measure("AutoencoderKLWan", "encode", (129, 720, 1281), {}, None)
    with pytest.raises(SystemExit):
        codec_memory.main(["--codec", "AutoencoderKL"])
