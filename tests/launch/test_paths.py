"""Blanks, quotes, `%`, `$` and `#` in the paths of a spec: every target hands on just that path, or refuses it by name.

Whoever takes a rendered line apart in earnest does it here: bash, sbatch where it is installed, the kubelet's rule.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch import jobset, local, places, queued_resource, sbatch_lines, slurm
from launch.targets import TARGETS
from omnihuman_jax.config import load_config
from omnihuman_jax.data.weighted_datasets import WeightedDataset
from tests.launch.specs import IMAGE, ON_SLURM, ON_TPU_VM, spec

NAMES = [
    "my runs",
    "it's",
    'a "b"',
    "100%",
    "%j",
    "$HOME",
    "$(touch pwned)",
    "`id`",
    "a;b&c|d",
    "#1",
    "*?[x]",
    "~",
    "ünï",
]
EXPORTED = 'import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get("JAX_COMPILATION_CACHE_DIR")]))'


def paths(name: str, root: str = "/runs") -> dict[str, Any]:
    return {
        "output": f"{root}/{name}/run",
        "checkpoints": f"{root}/{name}/checkpoints",
        "compilation_cache": f"{root}/{name}/cache",
        "overrides": {"data.dataset": f"{root}/{name}/data"},
    }


def expected(name: str, root: str = "/runs") -> list[str]:
    return [
        f"--run={root}/{name}/run",
        f"--config.data.dataset={root}/{name}/data",
        f"--config.checkpoint.directory={root}/{name}/checkpoints",
    ]


def sbatch_reads(line: str) -> str:
    """The value of an `#SBATCH` line by sbatch's rules: quotes group, a backslash escapes, `#` begins a comment."""
    value, quote, rest = "", "", iter(line.removeprefix("#SBATCH "))
    for letter in rest:
        if letter == "\\":
            value += next(rest)
        elif letter == '"':
            quote = "" if quote else letter
        elif not quote and (letter.isspace() or letter == "#"):
            break
        else:
            value += letter
    return value


def sbatch_itself_reads(folder: Path, script: str) -> list[str]:
    """What the real sbatch finds on the lines of a script; it says so before it looks for a cluster."""
    (folder / "slurm.conf").write_text(
        "ClusterName=x\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=16999\nNodeName=localhost State=UNKNOWN\n"
    )
    command = ["timeout", "10", "sbatch", "-vvvv", "--test-only"]
    done = subprocess.run(
        command, input=script, env={"SLURM_CONF": str(folder / "slurm.conf"), "PATH": "/usr/bin:/bin"}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    return re.findall(r'Found in script, argument "(.*)"', done.stderr)


@pytest.mark.parametrize("name", NAMES)
def test_slurm(name: str, tmp_path: Path) -> None:
    run = spec(ON_SLURM, paths(name, "/shared"), slurm=ON_SLURM["slurm"] | {"workdir": f"/shared/{name}"})
    if set(name) & set("'\""):
        with pytest.raises(ValueError, match=r"output .*, which SLURM cannot have in the name of a log; rename it"):
            slurm.check(run)
    else:
        slurm.check(run)
    script = slurm.render(run)
    log = f"--output=/shared/{name.replace('%', '%%')}/run/launch/slurm-%j.log"
    (line,) = [line for line in script.splitlines() if line.startswith("#SBATCH --output")]
    assert sbatch_reads(line) == log
    if shutil.which("sbatch"):
        assert log in sbatch_itself_reads(tmp_path, script)
    # What bash makes of the line that starts the trainer, with a srun that prints its arguments.
    (tmp_path / "srun").write_text(f"#!/bin/sh\nexec {sys.executable} -c '{EXPORTED}' \"$@\" >&3\n")
    (tmp_path / "srun").chmod(0o755)
    script = script.replace(f"state={shlex.quote(run.output + '/launch')}", f"state={tmp_path}/state")
    done = subprocess.run(
        ["bash", "-c", f"exec 3>&1; {script}"], cwd=tmp_path, text=True, capture_output=True, check=False,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "1", "RESTART_PAUSE_S": "0"},
    )  # fmt: skip
    argv, cache = json.loads(done.stdout.splitlines()[0])
    assert set(expected(name, "/shared")) | {f"--chdir=/shared/{name}"} <= set(argv)
    assert cache == f"/shared/{name}/cache" and not (tmp_path / "pwned").exists()


def kubelet_reads(text: str) -> str:
    """Kubernetes' expansion of a command without variables: `$$` is `$`, an unknown `$(NAME)` is left."""
    return text.replace("$$", "$")


@pytest.mark.parametrize("name", NAMES)
def test_jobset(name: str) -> None:
    manifest = yaml.safe_load(jobset.render(spec(paths(name))))
    container = jobset.pod_of(manifest)["containers"][0]
    assert set(expected(name)) <= set(map(kubelet_reads, container["command"]))
    assert not any(re.search(r"(?<!\$)(\$\$)*\$\(", word) for word in container["command"])
    cache = next(entry["value"] for entry in container["env"] if entry["name"] == "JAX_COMPILATION_CACHE_DIR")
    assert kubelet_reads(cache) == f"/runs/{name}/cache"


@pytest.mark.parametrize("name", NAMES)
def test_queued_resource(name: str) -> None:
    mounts = {f"/mnt/{name}": "/runs"}
    run = spec(ON_TPU_VM, paths(name), tpu_vm=ON_TPU_VM["tpu_vm"] | {"mounts": mounts})
    queued_resource.check(run)
    *_, line = queued_resource.render(run).splitlines()
    command = next(word for word in shlex.split(line) if word.startswith("--command=")).removeprefix("--command=")
    show = f"sudo() {{ {sys.executable} -c '{EXPORTED}' \"$@\"; }}; {command}"
    words = subprocess.run(["bash", "-c", show], text=True, capture_output=True, check=True).stdout.splitlines()
    argv, _ = json.loads(words[-1])
    wanted = {*expected(name), f"/mnt/{name}:/runs", f"JAX_COMPILATION_CACHE_DIR=/runs/{name}/cache"}
    assert wanted <= set(argv)


@pytest.mark.parametrize("name", NAMES)
def test_local(name: str, tmp_path: Path) -> None:
    """A process of the job prints what it was given, in a folder of that name."""
    run = spec(paths(name, str(tmp_path)), image="", volumes=[], accelerator={"type": "cpu", "nodes": 1, "devices": 1})
    job = local.LocalJob(run)
    trainer = job.command_of

    def printing(*arguments: Any) -> list[str]:
        argv = trainer(*arguments)
        return [sys.executable, "-c", EXPORTED, *argv[1:]]

    job.command_of = printing
    assert job.run().code == 0
    (log,) = (tmp_path / name / "run" / "launch" / "logs").glob("*")
    argv, cache = json.loads(log.read_text().splitlines()[-1])
    assert set(expected(name, str(tmp_path))) <= set(argv) and cache == f"{tmp_path}/{name}/cache"


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("output", {"output": "/runs/a\nb"}),
        ("checkpoints", {"checkpoints": "/runs/a\x1b[2J"}),
        ("config", {"config": "/runs/a\tb.py"}),
        ("compilation_cache", {"compilation_cache": "/runs/\x7f"}),
        ("overrides.data.dataset", {"overrides": {"data.dataset": "/runs/\r"}}),
        ("reservation", {"reservation": "a\nb"}),
        ("slurm.partition", {"slurm": {"partition": "a\n#SBATCH --uid=0"}}),
        (r"slurm.binds\[0\]", {"slurm": {"binds": ["/a\n"]}}),
        ("tpu_vm.mounts", {"tpu_vm": {"mounts": {"/a\n": "/b"}}}),
        ("secrets.X.file", {"secrets": {"X": {"file": "/a\n"}}}),
        ("volumes.runs", {"volumes": [{"name": "runs", "mount": "/a\n", "source": {"emptyDir": {}}}]}),
    ],
)
def test_a_line_break_in_a_path_is_refused(field: str, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{field}.* has the control character") as error:
        spec(change)
    assert "\n" not in str(error.value)


def test_what_a_target_cannot_hand_on_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"output .*, which SLURM cannot have in the name of a log"):
        slurm.check(spec(ON_SLURM, output="/shared/a\\b"))
    apptainer = {"slurm": {"runtime": "apptainer", "time": "60"}, "image": IMAGE}
    for name in ("a:b", "a,b"):
        with pytest.raises(ValueError, match=r"output .* parts the folders of a --bind"):
            slurm.check(spec(ON_SLURM, apptainer, output=f"/shared/{name}"))
    with pytest.raises(ValueError, match=r"tpu_vm\.mounts: .*'/mnt/a:b' has a ':'"):
        queued_resource.check(spec(ON_TPU_VM, tpu_vm=ON_TPU_VM["tpu_vm"] | {"mounts": {"/mnt/a:b": "/runs"}}))
    with pytest.raises(ValueError, match=r"volumes\.v: mount '/a:b' has a ':'"):
        spec(volumes=[{"name": "v", "mount": "/a:b", "source": {"emptyDir": {}}}])
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"overrides\.optimizer\.learning_rate must be a finite number"):
            spec(overrides={"optimizer.learning_rate": number})


def test_a_plain_value_is_written_as_it_is() -> None:
    assert sbatch_lines.option("--time", "1-00:00:00") == "--time=1-00:00:00"
    assert sbatch_lines.option("--output", "/shared/my runs/x") == '--output="/shared/my runs/x"'


def test_each_of_several_data_sets_has_to_be_where_the_trainer_sees_it() -> None:
    made, target = spec(), TARGETS["jobset"]
    config = load_config(made.config)
    config.data.datasets = (WeightedDataset(path="/runs/talks"), WeightedDataset(path="gs://bucket/songs"))
    places.check(made, target, config)
    config.data.datasets[0].path = "/datta/talks"
    with pytest.raises(
        ValueError, match=r"data\.datasets\[0\]\.path of .*omnihuman_7b\.py '/datta/talks' is on none of"
    ):
        places.check(made, target, config)
