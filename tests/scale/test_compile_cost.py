"""The program does not grow with depth; `make compile-cost` shows that the time to compile it does not either."""

import pytest

from omnihuman_jax import sharding
from tests.scale.compile_cost import instructions, lower


@pytest.mark.slow
def test_the_program_has_the_same_size_at_any_depth() -> None:
    small, large = (instructions(lower(depth, sharding.MeshConfig(), 1).as_text()) for depth in (5, 24))
    assert small == large > 1000
