"""Checkpoints in a bucket, which has no folders: what a save that died has left is set aside there as on a disk."""

import json
from collections.abc import Iterator

import pytest

from omnihuman_jax.checkpoint import manifest
from omnihuman_jax.checkpoint.checkpoints import open_checkpoints
from omnihuman_jax.checkpoint.writer import CheckpointConfig
from omnihuman_jax.runtime import storage
from tests.checkpoint import bucket as in_memory

RUN = "bucket/a/run"


def committed(objects: dict[str, bytes], step: int) -> None:
    """A step as Orbax and TensorStore leave it: written past whoever keeps listings."""
    for name in ("_CHECKPOINT_METADATA", "params/d/0", "ema/d/0", "progress/_METADATA"):
        objects[f"{RUN}/{step}/{name}"] = bytes(step)


@pytest.fixture
def bucket() -> Iterator[dict[str, bytes]]:
    with in_memory.empty_bucket() as objects:
        yield objects


def test_a_step_without_a_manifest_is_set_aside_and_later_ones_are_rolled_back(bucket: dict[str, bytes]) -> None:
    noted = []
    with open_checkpoints(f"gs://{RUN}", CheckpointConfig(), lambda *incident: noted.append(incident)) as checkpoints:
        identity = json.loads(bucket[f"{RUN}/{storage.IDENTITY}"])["id"]
        assert checkpoints.reader.steps == [] and checkpoints.choose() is None
        for step in (5, 10, 15):
            committed(bucket, step)
            assert manifest.committed_steps(checkpoints.reader.folder.path)[-1] == step  # looked at anew
            if step != 15:
                assert manifest.write(checkpoints.reader.folder.path / str(step)) == 4 * step
        assert checkpoints.reader.steps == [5, 10]
    # The next start, after a kill between the commit and the manifest.
    with open_checkpoints(f"gs://{RUN}", CheckpointConfig(), lambda *incident: noted.append(incident)) as checkpoints:
        assert checkpoints.reader.folder.identity == identity
        assert checkpoints.choose() == 10
        assert bucket[f"{RUN}/damaged/15-1/params/d/0"] == bytes(15) and f"{RUN}/15/params/d/0" not in bucket
        assert "no manifest" in json.loads(bucket[f"{RUN}/damaged/15-1/why.json"])["reason"]
        assert [kind for kind, _ in noted] == ["checkpoint_rejected"]
        committed(bucket, 15)
        checkpoints.reject(15, "again")
        assert f"{RUN}/damaged/15-2/ema/d/0" in bucket
        bucket[f"{RUN}/10/ema/d/0"] = b"short"
        assert checkpoints.choose() == 5 and list(manifest.aside(checkpoints.reader.folder.path)) == ["10-1"]
        checkpoints.roll_back(5)
        assert checkpoints.reader.steps == [] and f"{RUN}/rolled_back/5-1/manifest.json" in bucket
        assert not [name for name in bucket if name.startswith((f"{RUN}/5/", f"{RUN}/10/", f"{RUN}/15/"))]


@pytest.mark.parametrize("left", ["15.orbax-checkpoint-tmp/params/d/0", "15.orbax-checkpoint-tmp"])
def test_what_a_save_that_died_has_left_is_removed(left: str, bucket: dict[str, bytes]) -> None:
    bucket[f"{RUN}/{left}"] = b"half"
    with open_checkpoints(f"gs://{RUN}", CheckpointConfig()):
        assert sorted(bucket) == [f"{RUN}/{storage.IDENTITY}"]
