"""gcloud's command lines for TPU VMs."""

import shlex
import subprocess
from pathlib import Path

import pytest

from launch import external, queued_resource
from tests.launch.specs import IMAGE, ON_TPU_VM, spec

PLACE = ["--project", "p", "--zone", "us-east5-b"]


def test_one_slice() -> None:
    run = spec(ON_TPU_VM, spot=True, service_account="me@p.iam.gserviceaccount.com")
    assert queued_resource.create_argv(run) == [
        "gcloud", "compute", "tpus", "queued-resources", "create", "run", *PLACE, "--accelerator-type", "v6e-256",
        "--runtime-version", "v2-alpha-tpuv6e", "--node-id", "run", "--spot", "--service-account",
        "me@p.iam.gserviceaccount.com",
    ]  # fmt: skip
    assert len(queued_resource.start_argvs(run)) == 1


def test_several_slices_and_a_reservation() -> None:
    two = {"type": "v5p", "topology": "4x4x8", "slices": 2}
    run = spec(ON_TPU_VM, accelerator=two, reservation="projects/p/locations/z/reservations/r")
    argv = queued_resource.create_argv(run)
    assert argv[:3] == ["gcloud", "alpha", "compute"] and "--node-id" not in argv
    assert argv[argv.index("--node-count") + 1] == "2" and argv[argv.index("--node-prefix") + 1] == "run"
    assert argv[argv.index("--accelerator-type") + 1] == "v5p-256"
    assert [argv[5] for argv in queued_resource.start_argvs(run)] == ["run-0", "run-1"]


def test_every_worker_starts_the_image_under_supervision() -> None:
    evil = "a b'; touch /pwned; $(id)"
    run = spec(
        ON_TPU_VM,
        env={"A": evil},
        secrets={"HF_TOKEN": {"file": "/etc/hf"}},
        grace_s=90,
        restarts=4,
        overrides={"seed": 3},
    )
    argv = queued_resource.start_argvs(run)[0]
    assert (
        argv[:8] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "run", "--project", "p"] and "--worker=all" in argv
    )
    login, docker = argv[-1].removeprefix("--command=").split(" && ", 1)
    assert login == "sudo gcloud auth configure-docker us-docker.pkg.dev --quiet"
    # What a remote shell makes of it: the words that we meant, and nothing else.
    words = shlex.split(docker)
    assert words == queued_resource.docker_argv(run) and f"A={evil}" in words
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {docker}"], capture_output=True, text=True, check=True
    ).stdout
    assert shown.splitlines() == words
    image = words.index(IMAGE)
    assert words[image + 1 : image + 6] == ["python", "-m", "launch.supervise", "--restarts", "4"]
    assert words[image + 6 : image + 9] == ["--secret", "HF_TOKEN=/run/secrets/HF_TOKEN", "--"]
    assert words[-2:] == ["--distributed", "--config.seed=3"]
    assert words[words.index("--stop-timeout") + 1] == "90" and "/etc/hf:/run/secrets/HF_TOKEN:ro" in words
    assert "/mnt/runs:/runs" in words


def gcloud(folder: Path, monkeypatch: pytest.MonkeyPatch, states: str) -> Path:
    """A gcloud that notes its arguments, and answers `describe` with one state after another."""
    log = folder / "calls"
    (folder / "gcloud").write_text(
        f'#!/usr/bin/env bash\necho "$4 $5" >>{log}\n[ "$4" = describe ] || exit 0\n'
        f"n=$(grep -c describe {log})\nset -- {states}\necho ${{!n}}\n"
    )
    (folder / "gcloud").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return log


def test_submit_waits_until_it_is_active(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(queued_resource, "POLL_S", 0.01)
    log = gcloud(tmp_path, monkeypatch, "WAITING_FOR_RESOURCES WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
    assert queued_resource.submit(spec(ON_TPU_VM)) == 0
    assert log.read_text().splitlines() == ["create run", *["describe run"] * 4, "ssh run"]
    assert capfd.readouterr().out.splitlines() == ["run: WAITING_FOR_RESOURCES", "run: PROVISIONING"]


def test_a_request_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = gcloud(tmp_path, monkeypatch, "FAILED")
    with pytest.raises(ChildProcessError, match="run is FAILED"):
        queued_resource.submit(spec(ON_TPU_VM))
    assert "ssh" not in log.read_text()


def test_a_tool_that_is_missing_or_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="gcloud is not on PATH: install the Google Cloud CLI"):
        queued_resource.submit(spec(ON_TPU_VM))
    (tmp_path / "gcloud").write_text("#!/bin/sh\necho 'ERROR: no quota' >&2\nexit 1\n")
    (tmp_path / "gcloud").chmod(0o755)
    with pytest.raises(ChildProcessError, match="exited with 1: ERROR: no quota"):
        external.ask(queued_resource.describe_argv(spec(ON_TPU_VM)))


def test_cancel_stops_before_it_deletes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = gcloud(tmp_path, monkeypatch, "ACTIVE")
    queued_resource.cancel(spec(ON_TPU_VM))
    assert log.read_text().splitlines() == ["ssh run", "delete run"]


def test_cancel_deletes_a_request_that_has_no_vms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It waits, or was preempted: ssh fails."""
    log = tmp_path / "calls"
    (tmp_path / "gcloud").write_text(f'#!/bin/bash\necho "$*" >>{log}\ncase "$*" in *" ssh "*) exit 1;; esac\n')
    (tmp_path / "gcloud").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert queued_resource.cancel(spec(ON_TPU_VM)) == 0
    assert " ssh " in log.read_text() and " delete run " in log.read_text().splitlines()[-1]
    assert "warning: run: nothing was stopped there (gcloud compute exited with 1" in capsys.readouterr().err
