"""A mesh that cannot split the model or the batch: one line, the numbers, the nearest values that would do. No device
is asked.
"""

import dataclasses

import pytest

from omnihuman_jax.attention.dispatch import AttentionStrategy
from omnihuman_jax.data.plan import PlanConfig
from omnihuman_jax.sharding import MeshConfig
from omnihuman_jax.training.splits import check_splits
from tests.training import tiny

PLAN = PlanConfig(sequences_per_step=8, latent_tokens=96)
MODEL = tiny.model_config()  # width 32, 2 heads, audio width 16


def check(
    num_devices: int,
    *,
    plan: dict | None = None,
    model: dict | None = None,
    attention: dict | None = None,
    micro: int = 1,
    **mesh: int,
) -> dict[str, int]:
    return check_splits(
        MeshConfig(**mesh),
        dataclasses.replace(MODEL, **(model or {})),
        AttentionStrategy(**(attention or {})),
        dataclasses.replace(PLAN, **(plan or {})),
        micro,
        num_devices=num_devices,
    )


def test_one_device_to_several_slices_by_values_alone() -> None:
    assert check(1) == {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
    assert check(8, fsdp=2, tensor=2) == {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}
    assert check(16, fsdp=4, context=2, slices=2) == {"data": 2, "fsdp": 4, "context": 2, "tensor": 1}
    assert check(16, data=1, fsdp=-1, tensor=2, slices=2, dcn_data=1, dcn_fsdp=-1) == {
        "data": 1, "fsdp": 8, "context": 1, "tensor": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("devices", "mesh", "message"),
    [
        (
            8,
            {"data": 1, "fsdp": 16},
            r"mesh data=1, fsdp=16, context=1, tensor=1 needs 16 devices, there are 8: mesh.fsdp=8",
        ),
        (8, {"data": 1, "fsdp": 4, "context": 4}, r"needs 16 devices, there are 8: mesh.fsdp=2 or mesh.context=2"),
        (
            8,
            {"data": 1, "fsdp": 4},
            r"needs 4 devices, there are 8: mesh.data=2 or mesh.fsdp=8 or mesh.context=2 or mesh.tensor=2",
        ),
        (8, {"fsdp": 3}, r"is a multiple of 3 devices, there are 8: mesh.fsdp=2 or 4"),
        (8, {"fsdp": 16}, r"is a multiple of 16 devices, there are 8: mesh.fsdp=8"),
        (8, {"data": -1, "fsdp": -1}, r"each axis must be >= 1, and at most one may be -1"),
        (8, {"tensor": 0}, r"each axis must be >= 1"),
        (8, {"slices": 3}, r"mesh.slices is 3, which does not divide 8 devices; the nearest that do: 2 or 4"),
        (8, {"slices": -1}, r"mesh.slices is -1"),
        (8, {"slices": 2, "dcn_data": 4}, r"mesh dcn_data=4, dcn_fsdp=1 needs 4 slices, there are 2: mesh.dcn_data=2"),
        (
            8,
            {"slices": 2, "dcn_fsdp": 2, "fsdp": 2},
            r"mesh.dcn_fsdp is 2 and mesh.data is 2: .* mesh.data=1 and mesh.fsdp=4",
        ),
    ],
)
def test_ways_that_the_devices_do_not_have(devices: int, mesh: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check(devices, **mesh)
    assert "\n" not in str(error.value)


def test_heads_tokens_sequences_and_weights_that_do_not_divide() -> None:
    with pytest.raises(
        ValueError, match=r"model.num_heads 2 is not divisible by mesh.tensor 4; the nearest that do: 2"
    ):
        check(4, tensor=4, data=1)
    with pytest.raises(ValueError, match=r"model.audio.num_heads 2 is not divisible by mesh.tensor 4"):
        check(4, tensor=4, data=1, model={"num_heads": 4, "rope_axes": (2, 2, 4)})
    with pytest.raises(ValueError, match=r"ulysses.*2 heads.*context"):
        check(4, context=4, data=1, attention={"context_parallel": "ulysses"})
    with pytest.raises(
        ValueError,
        match=(
            r"latent_tokens 90 is not divisible by mesh.context 4; nearest tokens: 88 or 92; nearest mesh.context: 3"
            r" or 5"
        ),
    ):
        check(4, context=4, data=1, plan={"latent_tokens": 90})
    with pytest.raises(
        ValueError,
        match=r"sequences_per_step 8 is not divisible by 12 = mesh data 2 x fsdp 2 x step.micro_batches 3; nearest: "
        r"data.plan.sequences_per_step=12, or step.micro_batches=2$",
    ):
        check(4, fsdp=2, micro=3)
    with pytest.raises(ValueError, match=r"divisible by 16 = .*sequences_per_step=16, or mesh.context or .* at most 8"):
        check(16)
    with pytest.raises(
        ValueError, match=r"/kernel: its embed dim 16 is not divisible by 64 = mesh fsdp 32 x context 2; .*: 16"
    ):
        check(64, data=1, fsdp=32, context=2, plan={"sequences_per_step": 32})
