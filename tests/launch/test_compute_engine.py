"""gcloud's command lines for a managed instance group of TPU VMs, and the VMs' start-up script."""

import shlex
import subprocess
from pathlib import Path

import pytest

from launch import compute_engine
from tests.launch.specs import IMAGE, ON_COMPUTE_ENGINE, TPU_VM, spec


def test_a_slice_is_one_group() -> None:
    run = spec(ON_COMPUTE_ENGINE, spot=True, service_account="me@p.iam.gserviceaccount.com")
    policy, template = compute_engine.policy_argv(run), compute_engine.template_argv(run, "s.sh")
    assert policy[-4:] == ["--type", "HIGH_THROUGHPUT", "--accelerator-topology", "16x16"]
    assert policy[policy.index("--region") + 1] == "us-east5"
    assert template[template.index("--machine-type") + 1] == "ct6e-standard-4t" and "SPOT" in template
    assert template[-1] == "--metadata-from-file=startup-script=s.sh" and "beta" not in template
    create, resize = compute_engine.group_argvs(run)
    assert create[create.index("--target-size-policy-mode") + 1] == "bulk"
    assert create[create.index("--workload-policy") + 1] == "projects/p/regions/us-east5/resourcePolicies/run"
    assert resize[-2:] == ["--size", "64"]


def test_flex_start_a_reservation_and_one_host() -> None:
    flex = spec(ON_COMPUTE_ENGINE, tpu_vm=TPU_VM | {"flex_start": "3d"})
    argv = compute_engine.template_argv(flex, "s.sh")
    assert argv[1] == "beta" and argv[argv.index("--max-run-duration") + 1] == "3d" and "FLEX_START" in argv
    reserved = compute_engine.template_argv(spec(ON_COMPUTE_ENGINE, reservation="r"), "s.sh")
    assert reserved[reserved.index("--reservation") + 1] == "r" and "specific" in reserved
    one = spec(ON_COMPUTE_ENGINE, accelerator={"type": "v6e", "topology": "2x4", "one_host": True})
    assert not compute_engine.policy_argv(one) and "--workload-policy" not in compute_engine.group_argvs(one)[0]
    assert "ct6e-standard-8t" in compute_engine.template_argv(one, "s.sh")
    ironwood = compute_engine.template_argv(
        spec(ON_COMPUTE_ENGINE, accelerator={"type": "tpu7x", "topology": "4x4x4"}), "s.sh"
    )
    assert {"tpu7x-standard-4t", "ubuntu-accel-2404-amd64-tpu-tpu7x", "hyperdisk-balanced"} <= set(ironwood)


def test_the_script_starts_the_image_and_values_stay_values(tmp_path: Path) -> None:
    evil = "a b'; touch pwned; $(id)"
    run = spec(ON_COMPUTE_ENGINE, env={"A": evil}, tpu_vm=TPU_VM | {"setup": ["mount /mnt/runs"]})
    script = compute_engine.startup_script(run)
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    lines = script.splitlines()
    assert lines.index("mount /mnt/runs") < lines.index(shlex.join(["sudo", "gcloud", "auth", "configure-docker",
                                                                  "us-docker.pkg.dev", "--quiet"]))  # fmt: skip
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("docker", "sudo", "mount"):
        (tools / name).write_text(f"#!/bin/bash\nprintf '%s\\n' {name} \"$@\" >>{tmp_path}/calls\n")
        (tools / name).chmod(0o755)
    subprocess.run(["bash"], input=script, text=True, check=True, cwd=tmp_path, env={"PATH": f"{tools}:/usr/bin:/bin"})
    words = (tmp_path / "calls").read_text()
    assert f"A={evil}\n" in words and f"{IMAGE}\npython\n-m\nlaunch.supervise\n" in words
    assert not (tmp_path / "pwned").exists()


def test_submit_runs_them_in_order_and_cancel_takes_all_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "calls"
    (tmp_path / "gcloud").write_text(
        f'#!/bin/bash\necho "$*" | cut -d" " -f2-5 >>{log}\n'
        f'for a in "$@"; do case "$a" in *startup-script=*) cat "${{a##*=}}" >{tmp_path}/script;; esac; done\n'
    )
    (tmp_path / "gcloud").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    run = spec(ON_COMPUTE_ENGINE)
    assert compute_engine.submit(run) == 0
    assert log.read_text().splitlines() == [
        "resource-policies create workload-policy run",
        "instance-templates create run --project",
        "instance-groups managed create run",
        "instance-groups managed resize run",
    ]
    assert (tmp_path / "script").read_text() == compute_engine.startup_script(run)
    log.unlink()
    compute_engine.cancel(run)
    assert [line.split()[:2] for line in log.read_text().splitlines()] == [
        ["instance-groups", "managed"], ["instance-templates", "delete"], ["resource-policies", "delete"],
    ]  # fmt: skip
    # Of a submit that failed half-way there is no group: the others go all the same, and it is said.
    log.unlink()
    (tmp_path / "gcloud").write_text(f'#!/bin/bash\necho "$2" >>{log}\n[ "$2" != instance-groups ]\n')
    with pytest.raises(ChildProcessError, match="gcloud compute exited with 1"):
        compute_engine.cancel(run)
    assert log.read_text().split() == ["instance-groups", "instance-templates", "resource-policies"]
