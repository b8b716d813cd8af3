"""What is rendered, read by the others' own programs: Kubernetes' schemas, kubectl, gcloud's parser, hadolint."""

import asyncio
import copy
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kmock
import kubernetes_validate
import pytest

from launch import compute_engine, jobset, queued_resource
from launch.spec import load_spec
from tests.launch.specs import ON_COMPUTE_ENGINE, ON_TPU_VM, ROOT, TPU_VM, spec

JOBSETS = ("v5p", "v6e_multislice", "h100", "h200")
KUBERNETES = ("1.31", "1.32", "1.33", "1.34", "1.35")


def child_job(example: str) -> dict[str, Any]:
    """The child Job as JobSet's controller makes it."""
    manifest = jobset.manifest(load_spec(ROOT / "launch" / "examples" / f"{example}.yaml"))
    template = copy.deepcopy(manifest["spec"]["replicatedJobs"][0]["template"])
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice-0"}, **template}


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("example", JOBSETS)
def test_child_jobs_by_kubernetes_own_schemas(example: str, version: str) -> None:
    job = child_job(example)
    kubernetes_validate.validate(job, version, strict=True)
    job["spec"]["template"]["spec"]["hostIpc"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="hostIpc"):
        kubernetes_validate.validate(job, version, strict=True)


def tool(name: str) -> str:
    """Of the environment, or of the machine."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.mark.parametrize("name", ["trainer", "curation"])
def test_dockerfiles(name: str) -> None:
    # DL3008 wants Debian's packages by version: they come from one moment of the snapshot archive instead.
    argv = [tool("hadolint"), "--ignore", "DL3008", str(ROOT / "launch" / "docker" / f"{name}.Dockerfile")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def gcloud_lines() -> list[list[str]]:
    flex = spec(ON_COMPUTE_ENGINE, tpu_vm=TPU_VM | {"flex_start": "3d", "network": "n"}, service_account="me@p")
    reserved = spec(ON_COMPUTE_ENGINE, reservation="r", accelerator={"type": "tpu7x", "topology": "4x4x4"})
    two = spec(ON_TPU_VM, accelerator={"type": "v5p", "topology": "4x4x8", "slices": 2}, reservation="r")
    lines = [compute_engine.policy_argv(flex), *compute_engine.group_argvs(flex)]
    lines += [compute_engine.template_argv(run, "/dev/null") for run in (flex, reserved)]
    lines += [queued_resource.create_argv(run) for run in (spec(ON_TPU_VM, spot=True), two)]
    return [*lines, queued_resource.describe_argv(two)]


@pytest.mark.slow
def test_gclouds_own_parser_takes_every_line(tmp_path: Path) -> None:
    """As far as "You do not have an active account": flags and their values, not what Google would say to them."""
    gcloud, environment = tool("gcloud"), os.environ | {"CLOUDSDK_CONFIG": str(tmp_path)}

    def said(argv: list[str]) -> str:
        done = subprocess.run([gcloud, *argv[1:]], capture_output=True, text=True, env=environment, check=False)
        return done.stderr

    assert "unrecognized arguments" in said([*gcloud_lines()[0], "--acclerator-topology=2x2"])
    for argv in gcloud_lines():
        answer = said(argv)
        if "--target-size-policy-mode" in answer and "alpha" not in argv:
            # Older than the flag's general release.
            answer = said([argv[0], "alpha", *argv[1:]])
        assert "active account" in answer, f"{shlex.join(argv)}: {answer}"


def test_kubectl_takes_what_we_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Against a server that keeps objects and checks nothing: the verbs, and that kubectl reads our YAML."""
    tool("kubectl")
    run = load_spec(ROOT / "launch" / "examples" / "v5p.yaml")

    async def story() -> None:
        emulator = kmock.KubernetesEmulator()
        key = kmock.resource("jobset.x-k8s.io", "v1alpha2", "jobsets")
        verbs = {"get", "list", "create", "delete"}
        emulator.resources[key] = kmock.ResourceInfo(kind="JobSet", singular="jobset", namespaced=True, verbs=verbs)
        emulator["get /openapi/v2"] << b""  # an empty document in protobuf: no schema of anything
        emulator["get /openapi/v3"] << {"paths": {}}
        async with emulator, kmock.Server(emulator, host="127.0.0.1") as server:
            config = {"server": f"http://127.0.0.1:{server.port}"}
            (tmp_path / "config").write_text(
                f"clusters: [{{name: c, cluster: {config}}}]\ncontexts: [{{name: c, context: {{cluster: c}}}}]\n"
                "current-context: c\n"
            )
            monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
            monkeypatch.setenv("HOME", str(tmp_path))  # its cache
            assert await asyncio.to_thread(jobset.submit, run) == 0
            with pytest.raises(ChildProcessError, match="kubectl create exited with 1"):
                await asyncio.to_thread(jobset.submit, run)
            assert await asyncio.to_thread(jobset.cancel, run) == 0

    asyncio.run(story())
    out = capfd.readouterr().out
    assert "jobset.jobset.x-k8s.io/omnihuman-7b created" in out and '"omnihuman-7b" deleted' in out
