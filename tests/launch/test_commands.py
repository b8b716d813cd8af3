"""submit, status, logs and cancel on the command line, with tools that only note how they were called."""

from pathlib import Path

import pytest
import yaml

from omnihuman_jax import cli
from tests.launch.specs import ON_SLURM, changed

NOTE = '#!/bin/sh\necho "$@" >>"$FOLDER/calls"\ncat >>"$FOLDER/stdin"\n'


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("kubectl", "sbatch", "squeue", "scancel"):
        (folder / name).write_text(NOTE)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("FOLDER", str(tmp_path))
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return tmp_path


def call(folder: Path, command: str, target: str, *options: str, **fields: object) -> list[str]:
    """Runs the command on a spec; how the tools were called."""
    data = changed(ON_SLURM, {"output": str(folder / "run")}, fields) if target == "slurm" else changed(fields)
    (folder / "spec.yaml").write_text(yaml.safe_dump(data))
    (folder / "calls").unlink(missing_ok=True)
    assert cli.main([command, str(folder / "spec.yaml"), "--target", target, *options]) == 0
    return (folder / "calls").read_text().splitlines()


def test_jobset(tools: Path) -> None:
    assert call(tools, "submit", "jobset", namespace="research") == ["create --filename -"]
    manifest = yaml.safe_load((tools / "stdin").read_text())
    assert manifest["kind"] == "JobSet" and manifest["metadata"]["namespace"] == "research"
    assert call(tools, "status", "jobset")[0] == "get jobset run --namespace default --output wide"
    lines = call(
        tools,
        "logs",
        "jobset",
        "--rank",
        "65",
        "--follow",
        accelerator={"type": "v5p", "topology": "4x8x8", "slices": 2},
    )
    selector = (
        "jobset.sigs.k8s.io/jobset-name=run,jobset.sigs.k8s.io/job-index=1,batch.kubernetes.io/job-completion-index=1"
    )
    assert lines == [f"logs --namespace default --selector {selector} --container train --tail 200 --follow"]
    assert call(tools, "cancel", "jobset") == ["delete jobset run --namespace default"]


def test_slurm(tools: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(tools, "submit", "slurm") == ["--parsable"]
    assert (tools / "stdin").read_text().startswith("#!/bin/bash -l\n#SBATCH --job-name=run\n")
    assert (tools / "run" / "launch").is_dir()  # sbatch drops a job whose log it cannot open
    assert call(tools, "status", "slurm")[0].startswith("--me --name run --noheader")
    (tools / "run" / "launch" / "slurm-7.log").write_text("a line of a rank\n")
    (tools / "calls").touch()
    capfd.readouterr()
    cli.main(["logs", str(tools / "spec.yaml"), "--target", "slurm"])
    assert capfd.readouterr().out == "a line of a rank\n"
    capfd.readouterr()
    call(tools, "cancel", "slurm")
    assert capfd.readouterr().out == f"run: not in the queue; its logs are in {tools}/run/launch\n"
    (tools / "bin" / "squeue").write_text("#!/bin/sh\necho 7\n")  # one job of that name
    assert call(tools, "cancel", "slurm") == ["--me --name run"]


@pytest.mark.parametrize(("target", "tool"), [("jobset", "kubectl"), ("slurm", "sbatch")])
def test_without_the_tool(
    tmp_path: Path, target: str, tool: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    data = changed(ON_SLURM, {"output": str(tmp_path / "run")}) if target == "slurm" else changed()
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(data))
    assert cli.main(["submit", str(tmp_path / "spec.yaml"), "--target", target]) == 2
    assert f"omnihuman submit: {tool} is not on PATH" in capsys.readouterr().err


def test_a_tool_that_fails_is_an_error(tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tools / "bin" / "kubectl").write_text("#!/bin/sh\necho 'already exists' >&2\nexit 1\n")
    (tools / "spec.yaml").write_text(yaml.safe_dump(changed()))
    assert cli.main(["submit", str(tools / "spec.yaml"), "--target", "jobset"]) == 2
    assert "kubectl create exited with 1" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["submit", "status", "logs", "cancel"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main([command, "--help"])
    assert done.value.code == 0
    assert f"omnihuman {command} launch/examples/v5p.yaml --target jobset" in capsys.readouterr().out
