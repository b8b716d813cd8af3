"""Every target has the whole interface, and a spec of its own to show it."""

import dataclasses
import inspect
from typing import Any

import pytest

from launch import checks
from launch.target import OPTIONAL_FIELDS, Target
from launch.targets import TARGETS
from tests.launch.specs import ON_COMPUTE_ENGINE, ON_SLURM, ON_TPU_VM, spec

SPECS: dict[str, dict[str, Any]] = {
    "jobset": {},
    "compute-engine": ON_COMPUTE_ENGINE,
    "queued-resource": ON_TPU_VM,
    "slurm": ON_SLURM,
    "local": {"accelerator": {"type": "cpu", "nodes": 2, "devices": 128}},
}


def test_every_target_is_tried() -> None:
    assert TARGETS.keys() == SPECS.keys()


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_whole(name: str) -> None:
    """The constructor asks for every field; here, that each function takes what it is called with, and answers."""
    target, run = TARGETS[name], spec(SPECS[name])
    assert target.name == name
    for field in ("check", "describe", "render", "submit", "status", "cancel", "homes", "images", "warnings"):
        inspect.signature(getattr(target, field)).bind(run)
    inspect.signature(target.logs).bind(run, rank=0, follow=False, lines=1)
    checks.check(run, target, checks.Options())
    assert target.describe(run) and target.render(run).endswith("\n")
    assert set(target.takes) <= set(OPTIONAL_FIELDS) and not set(target.instead) & set(target.takes)
    homes = target.homes(run)
    assert homes is None or all(isinstance(reason, str) for reason in homes.values())
    assert all(isinstance(line, str) for line in checks.warnings(run, target))


def test_a_target_that_lacks_a_function_is_none() -> None:
    whole = {field.name: getattr(TARGETS["slurm"], field.name) for field in dataclasses.fields(Target)}
    for name in whole:
        with pytest.raises(TypeError, match=name):
            Target(**{field: value for field, value in whole.items() if field != name})


@pytest.mark.parametrize(
    ("name", "fields", "part"),
    [
        ("jobset", {}, "ct5p-hightpu-4t"),
        ("jobset", {"accelerator": {"type": "v6e", "topology": "2x4", "one_host": True}}, "ct6e-standard-8t"),
        ("compute-engine", {}, "ct6e-standard-4t"),
        ("slurm", {}, "32 x h100: 256 devices"),
        ("local", {}, "2 processes of this machine, 128 devices each"),
    ],
)
def test_machines_in_words(name: str, fields: dict[str, Any], part: str) -> None:
    assert part in TARGETS[name].describe(spec(SPECS[name], fields))


FUSE = {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": {"bucketName": "b"}}}


@pytest.mark.parametrize(
    ("name", "fields", "part"),
    [
        ("jobset", {"volumes": [{"name": "runs", "mount": "/runs", "source": FUSE}]}, "give checkpoints a gs:// URI"),
        ("jobset", {"spot": True}, "a spot node's pods get about 15 s, whatever grace_s 120 says"),
        ("jobset", {"accelerator": {"type": "h100", "nodes": 32}}, "would talk over eth0 by plain TCP"),
        ("compute-engine", {}, "a VM that goes gives about 90 s, whatever grace_s 120 says"),
        ("queued-resource", {}, "--target compute-engine takes the same spec"),
    ],
)
def test_what_may_hurt_is_said(name: str, fields: dict[str, Any], part: str) -> None:
    run = spec(SPECS[name], fields)
    assert part in "\n".join(checks.warnings(run, TARGETS[name]))


def test_nothing_is_said_of_checkpoints_in_a_bucket() -> None:
    volumes = [{"name": "runs", "mount": "/runs", "source": FUSE}]
    assert not checks.warnings(spec(volumes=volumes, checkpoints="gs://my-runs/x"), TARGETS["jobset"])
