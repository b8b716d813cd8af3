"""Specs: read strictly, and refused in one line before anything is sent."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from launch import checks
from launch.accelerators import GPU_MACHINES
from launch.spec import RunSpec, load_spec
from launch.targets import TARGETS
from omnihuman_jax import cli
from omnihuman_jax.scale.hardware import parse_topology
from tests.launch import broken_places
from tests.launch.specs import GOOD, IMAGE, ON_SLURM, ON_TPU_VM, ROOT, SLURM, TPU_VM, changed, spec

EXAMPLES = {
    "v5p": "jobset",
    "v6e_multislice": "jobset",
    "h100": "jobset",
    "h200": "jobset",
    "compute_engine": "compute-engine",
    "tpu_vm": "queued-resource",
    "slurm": "slurm",
    "local": "local",
}


def sidecar(name: str = "side", **fields: Any) -> dict[str, Any]:
    """A patch with one container."""
    return {"spec": {"containers": [{"name": name, **fields}]}}


CASES: list[tuple[str, str, dict[str, Any], str]] = [
    # what, target, spec, part of the error
    ("an unknown key", "jobset", changed({"acclerator": {}}), "acclerator: no such field; did you mean 'accelerator'?"),
    (
        "an unknown inner key",
        "jobset",
        changed({"accelerator": {"type": "v5p", "topolgy": "4x4x4"}}),
        "did you mean 'topology'?",
    ),
    ("a missing key", "jobset", changed(drop="output"), "output is missing"),
    ("a wrong type", "jobset", changed({"restarts": "ten"}), "restarts: expects a whole number, not 'ten'"),
    ("a number where text is", "jobset", changed({"env": {"N": 3}}), "env.N: expects text, not 3 (quote it)"),
    ("not a mapping", "jobset", changed({"accelerator": "v5p-64"}), "accelerator: expects a mapping, not 'v5p-64'"),
    ("a name with capitals", "jobset", changed({"name": "MyRun"}), "name 'MyRun' must have lower-case letters"),
    ("a long name", "jobset", changed({"name": "a" * 27}), "has 27 characters; the names of pods leave room for 26"),
    (
        "an unknown accelerator",
        "jobset",
        changed({"accelerator": {"type": "v5x"}}),
        "accelerator.type 'v5x' is unknown",
    ),
    (
        "a topology of no slice",
        "jobset",
        changed({"accelerator": {"type": "v5p", "topology": "4x4x6"}}),
        "v5p has no topology 4x4x6",
    ),
    (
        "no topology",
        "jobset",
        changed({"accelerator": {"type": "v6e"}}),
        "accelerator.topology is missing; v6e has 1x1",
    ),
    (
        "a TPU by nodes",
        "jobset",
        changed({"accelerator": {"type": "v6e", "topology": "8x8", "nodes": 4}}),
        "not by nodes",
    ),
    (
        "a GPU by slices",
        "jobset",
        changed({"accelerator": {"type": "h100", "slices": 4}}),
        "topology and slices are for TPUs",
    ),
    (
        "slices of one host",
        "jobset",
        changed({"accelerator": {"type": "v6e", "topology": "2x2", "slices": 2}}),
        "2 slices of v6e 2x2, a single host",
    ),
    (
        "spot and reserved",
        "jobset",
        changed({"spot": True, "reservation": "r"}),
        "spot and reservation 'r' exclude each other",
    ),
    ("a literal secret", "jobset", changed({"env": {"HF_TOKEN": "x"}}), "env.HF_TOKEN looks like a secret"),
    (
        "a secret's value",
        "jobset",
        changed({"env": {"HUB": "hf_" + "a" * 30}}),
        "the value of env.HUB looks like a credential",
    ),
    (
        "a password in a URI",
        "jobset",
        changed({"overrides": {"data.dataset": "https://me:secret@host/x"}}),
        "overrides.data.dataset looks like a credential",
    ),
    *(
        (f"a secret in {what}", "jobset", changed({"pod_patch": patch}), message)
        for what, patch, message in [
            (
                "a pod's env",
                sidecar(env=[{"name": "HF_TOKEN", "value": "x"}]),
                "containers[0].env[0].value looks like a secret",
            ),
            (
                "a pod's value",
                sidecar(env=[{"name": "HUB", "value": "hf_" + "a" * 30}]),
                "value looks like a credential",
            ),
            (
                "a pod's arguments",
                sidecar(args=["--api-key", "abc"]),
                "args[1] sets api-key to what looks like a secret",
            ),
            ("a pod's line of bash", sidecar(args=["A=b DB_PASSWORD='x' run"]), "args[0] sets DB_PASSWORD to what"),
            (
                "an annotation",
                {"metadata": {"annotations": {"x/api-token": "abc"}}},
                "annotations.x/api-token looks like a secret",
            ),
            ("a key", {"metadata": {"annotations": {"AKIA" + "A" * 16: ""}}}, "looks like a credential"),
        ]
    ),
    (
        "a secret in a line of bash",
        "slurm",
        changed(ON_SLURM, {"slurm": {"setup": ["module load x", "export HF_TOKEN=abc"]}}),
        (
            "slurm.setup[1] sets HF_TOKEN to what looks like a secret, which everyone who may read jobs could read; "
            "refer to it in secrets; if it is none, say not_secret: [HF_TOKEN]"
        ),
    ),
    (
        "a secret in a directive",
        "slurm",
        changed(ON_SLURM, {"slurm": {"directives": ["--export=ALL,WANDB_API_KEY=abc"]}}),
        "slurm.directives[0] sets WANDB_API_KEY to what",
    ),
    (
        "a tag in a patch",
        "jobset",
        changed({"pod_patch": sidecar(name="train", image="repo/x:1")}),
        "containers[train] 'repo/x:1' is",
    ),
    (
        "a sidecar by tag",
        "jobset",
        changed({"pod_patch": sidecar(image="repo/x")}),
        "image of containers[side] 'repo/x' is given by tag",
    ),
    (
        "an init container by tag",
        "jobset",
        changed({"pod_patch": {"spec": {"initContainers": [{"name": "first", "image": "repo/x:2"}]}}}),
        "image of initContainers[first] 'repo/x:2' is given by tag",
    ),
    (
        "an image volume by tag",
        "jobset",
        changed({"pod_patch": {"spec": {"volumes": [{"name": "code", "image": {"reference": "repo/x:2"}}]}}}),
        "image of volumes[code] 'repo/x:2' is given by tag",
    ),
    (
        "a tag in a line of bash",
        "slurm",
        changed(ON_SLURM, {"slurm": SLURM | {"setup": ["apptainer pull docker://repo/x:1"]}}),
        "slurm: the image 'repo/x:1' is given by tag",
    ),
    (
        "half a reference",
        "jobset",
        changed({"secrets": {"T": {"secret": "s"}}}),
        "secrets.T: give either secret and key",
    ),
    ("a file for a pod", "jobset", changed({"secrets": {"T": {"file": "/x"}}}), "pods read Kubernetes secrets"),
    (
        "a Kubernetes secret for SLURM",
        "slurm",
        changed(ON_SLURM, {"secrets": {"T": {"secret": "s", "key": "k"}}}),
        "reads files on",
    ),
    (
        "what the launcher sets",
        "jobset",
        changed({"env": {"JAX_PROCESS_ID": "0"}}),
        "env JAX_PROCESS_ID is set by the launcher",
    ),
    (
        "an image by tag",
        "jobset",
        changed({"image": "repo/trainer:latest"}),
        "is given by tag, and a tag can change while the job runs",
    ),
    (
        "a short digest",
        "jobset",
        changed({"image": "repo/trainer@sha256:abc"}),
        "is not of the form repo@sha256:<64 hex digits>",
    ),
    ("no image", "jobset", changed({"image": ""}), "image is missing; --target jobset runs one"),
    (
        "output in the container",
        "jobset",
        changed({"output": "/app/run"}),
        "'/app/run' is on none of volumes (/runs)",
    ),
    (
        "output in the pod",
        "jobset",
        changed({"output": "/tmp/run"}),
        "the volume 'tmp', of kind emptyDir, which ends with its pod",
    ),
    ("output beside its volume", "jobset", changed({"output": "/runs/../app"}), "is on none of volumes (/runs)"),
    (
        "output on an emptyDir",
        "jobset",
        changed({"volumes": [GOOD["volumes"][0] | {"source": {"emptyDir": {}}}]}),
        (
            "output '/runs/run' is on the volume 'runs', of kind emptyDir, which ends with its pod, so a restart would"
            " not find it; put it on one of volumes (there are none)"
        ),
    ),
    (
        "an emptyDir over a volume",
        "jobset",
        changed({"volumes": [*GOOD["volumes"], {"name": "top", "mount": "/runs/run", "source": {"emptyDir": {}}}]}),
        "is on the volume 'top', of kind emptyDir",
    ),
    (
        "a patch that takes the volume",
        "jobset",
        changed(
            {"pod_patch": {"spec": {"volumes": [{"name": "runs", "persistentVolumeClaim": None, "emptyDir": {}}]}}}
        ),
        "is on the volume 'runs', of kind emptyDir",
    ),
    (
        "output where nothing is written",
        "jobset",
        changed({"volumes": [GOOD["volumes"][0] | {"read_only": True}]}),
        "is on the volume 'runs', which is read-only",
    ),
    (
        "checkpoints in the container",
        "jobset",
        changed({"checkpoints": "/c"}),
        "checkpoints '/c' is on none of volumes",
    ),
    (
        "checkpoints moved away",
        "jobset",
        changed({"overrides": {"checkpoint.directory": "/tmp/x"}}),
        "overrides.checkpoint.directory '/tmp/x' is on the volume 'tmp'",
    ),
    (
        "checkpoints said twice",
        "jobset",
        changed({"checkpoints": "/runs/c", "overrides": {"checkpoint.directory": "/runs/d"}}),
        "overrides.checkpoint.directory repeats `checkpoints`",
    ),
    (
        "checkpoints by file://",
        "jobset",
        changed({"checkpoints": "file:///runs/c"}),
        "checkpoint.directory is file:///runs/c: give the path without file://",
    ),
    (
        "output in the VM's own memory",
        "queued-resource",
        changed(ON_TPU_VM, {"tpu_vm": TPU_VM | {"mounts": {"/dev/shm/x": "/runs"}}}),
        "is on /dev/shm/x of the VM, which does not last",
    ),
    (
        "checkpoints that the container does not see",
        "slurm",
        changed(ON_SLURM, {"image": IMAGE, "slurm": {"runtime": "apptainer"}, "checkpoints": "/shared/c"}),
        "checkpoints '/shared/c' is on none of output and slurm.binds (/shared/run)",
    ),
    (
        "a bucket as output",
        "slurm",
        changed(ON_SLURM, {"output": "gs://my-runs/run"}),
        "must be a folder with --target slurm, whose logs are written there; give `checkpoints` the URI",
    ),
    (
        "a relative output",
        "slurm",
        changed(ON_SLURM, {"output": "runs/a"}),
        "must be an absolute path with --target slurm",
    ),
    ("a config that is not there", "jobset", changed({"config": "configs/none.py"}), "configs/none.py does not exist"),
    (
        "a config's field that is not there",
        "jobset",
        changed({"overrides": {"model.widht": 8}}),
        "there is no field 'model.widht'; did you mean 'model.width'?",
    ),
    (
        "a mesh of other devices",
        "jobset",
        changed({"accelerator": {"type": "v5p", "topology": "4x4x8"}}),
        "is a multiple of 256 devices, there are 128",
    ),
    (
        "a batch that the mesh cannot split",
        "jobset",
        changed({"overrides": {"data.plan.sequences_per_step": 40}}),
        "data.plan.sequences_per_step 40 is not divisible by 32",
    ),
    (
        "an override with its prefix",
        "jobset",
        changed({"overrides": {"config.seed": 3}}),
        "overrides.config.seed: give the field alone",
    ),
    (
        "a relative mount",
        "jobset",
        changed({"volumes": [GOOD["volumes"][0] | {"mount": "runs"}]}),
        "'runs' is not an absolute path",
    ),
    ("a volume twice", "jobset", changed({"volumes": GOOD["volumes"] * 2}), "volumes: name runs is there twice"),
    (
        "a typo in a volume's source",
        "jobset",
        changed({"volumes": [GOOD["volumes"][0] | {"source": {"persistentVolumeClaim": {"claim": "runs"}}}]}),
        "JobSet: spec.replicatedJobs.0.template.spec.template.spec.volumes.2.persistentVolumeClaim: ",
    ),
    ("a typo in the pod patch", "jobset", changed({"pod_patch": {"spec": {"hostIPCC": True}}}), "hostIPCC"),
    (
        "a patch that takes the failure policy its ground",
        "jobset",
        changed({"pod_patch": {"spec": {"restartPolicy": "OnFailure"}}}),
        "a podFailurePolicy needs Never",
    ),
    (
        "a patch that takes chips",
        "jobset",
        changed(
            {"pod_patch": {"spec": {"containers": [{"name": "train", "resources": {"limits": {"google.com/tpu": 1}}}]}}}
        ),
        "google.com/tpu: limits 1 and requests 4 must both be 4",
    ),
    *(
        (f"a patch of the trainer's {what}", "jobset", changed({"pod_patch": sidecar("train", **fields)}), message)
        for what, fields, message in [
            ("resources", {"resources": None}, "container 'train' asks for no chips; there must be 4"),
            (
                "command",
                {"command": ["python", "other.py"]},
                "pod_patch: command and args of 'train' come from the spec",
            ),
            (
                "arguments",
                {"args": ["--config.checkpoint.directory=/c"]},
                "pod_patch: command and args of 'train' come from the spec",
            ),
            (
                "place",
                {"env": [{"name": "MEGASCALE_SLICE_ID", "value": "0"}]},
                "env MEGASCALE_SLICE_ID of 'train' is set by",
            ),
        ]
    ),
    (
        "the host's network in a restricted pod",
        "jobset",
        changed(ON_SLURM, {"image": IMAGE, "host_network": True, "security": "restricted"}),
        "host_network is not allowed by security 'restricted'",
    ),
    (
        "a restricted TPU pod",
        "jobset",
        changed({"security": "restricted"}),
        "keeps the TPU runtime from pinning memory",
    ),
    (
        "an unknown profile",
        "jobset",
        changed({"security": "none"}),
        "security 'none' is unknown; it is one of restricted, tpu",
    ),
    (
        "tpu7x without a policy",
        "jobset",
        changed({"accelerator": {"type": "tpu7x", "topology": "4x4x8"}}),
        "placement_policy is missing",
    ),
    *(
        (
            f"{field} on {target}",
            target,
            changed(base, {field: value}),
            f"{field} has no effect with --target {target}, only with {takers}",
        )
        for target, base, field, value, takers in [
            (
                "slurm",
                ON_SLURM,
                "priority",
                "high",
                "jobset; SLURM has slurm.qos, and slurm.directives such as --nice=100",
            ),
            ("slurm", ON_SLURM, "namespace", "research", "jobset; leave it out"),
            ("slurm", ON_SLURM, "service_account", "me", "jobset and compute-engine and queued-resource; leave it out"),
            ("slurm", ON_SLURM, "volumes", GOOD["volumes"], "jobset; the nodes' own file systems are there"),
            ("queued-resource", ON_TPU_VM, "volumes", GOOD["volumes"], "jobset; TPU VMs have tpu_vm.mounts"),
            ("queued-resource", ON_TPU_VM, "pod_patch", sidecar(image=IMAGE), "jobset; leave it out"),
            ("queued-resource", ON_TPU_VM, "host_network", True, "jobset"),
            ("queued-resource", ON_TPU_VM, "security", "privileged", "jobset"),
            ("queued-resource", ON_TPU_VM, "ttl_s", 60, "jobset"),
        ]
    ),
    (
        "an image that no container runs",
        "slurm",
        changed(ON_SLURM, {"image": IMAGE}),
        "image has no effect with slurm.runtime python; remove it, or use the other runtime",
    ),
    *(
        (f"a bad {field}", "jobset", changed({field: value}), message)
        for field, value, message in [
            (
                "namespace",
                "Bad NS",
                "namespace 'Bad NS' is not a valid Kubernetes name: it may have lower-case letters, digits and '-'",
            ),
            ("namespace", "", "namespace and the names of volumes must not be empty"),
            ("queue", "bad queue!", "queue 'bad queue!' is not a valid Kubernetes name"),
            ("priority", "High", "priority 'High' is not a valid Kubernetes name"),
            ("service_account", "me@project", "service_account 'me@project' is not a valid Kubernetes name"),
            ("reservation", "a b", "reservation 'a b' is not a valid Kubernetes name"),
            ("secrets", {"T": {"secret": "Hub", "key": "k"}}, "secrets.T.secret 'Hub' is not a valid Kubernetes name"),
            (
                "volumes",
                [GOOD["volumes"][0] | {"name": "my_runs"}],
                "volumes[0].name 'my_runs' is not a valid Kubernetes name",
            ),
        ]
    ),
    (
        "CPUs on GKE",
        "jobset",
        changed({"accelerator": {"type": "cpu", "nodes": 2}}),
        "cpu is for --target local and slurm",
    ),
    (
        "a TPU on SLURM",
        "slurm",
        changed({"output": "/shared/run"}),
        "cannot run on SLURM, which serves GPU and cpu nodes",
    ),
    (
        "no interpreter on SLURM",
        "slurm",
        changed(ON_SLURM, {"slurm": {}}),
        "slurm.python and slurm.workdir are missing",
    ),
    (
        "a SLURM time in words",
        "slurm",
        changed(ON_SLURM, {"slurm": {"time": "a day"}}),
        "slurm.time 'a day' must be D-HH:MM:SS",
    ),
    (
        "a directive of the launcher's own",
        "slurm",
        changed(ON_SLURM, {"slurm": SLURM | {"directives": ["--exclude=a", "--nodes=2"]}}),
        "slurm.directives: '--nodes=2' is set by the launcher",
    ),
    (
        "a directive that ends the line",
        "slurm",
        changed(ON_SLURM, {"slurm": {"directives": ["--a=b\nrm"]}}),
        "is not of the form",
    ),
    (
        "a GPU as queued resource",
        "queued-resource",
        changed(ON_TPU_VM, {"accelerator": {"type": "h100"}}),
        "is not a TPU, and queued resources serve TPUs only",
    ),
    (
        "a TPU that is only announced",
        "jobset",
        changed({"accelerator": {"type": "tpu8t", "topology": "4x4x8"}}),
        "tpu8t is announced, and no cloud's name for it is known: nothing can be submitted; `omnihuman plan",
    ),
    (
        "tpu7x as queued resource",
        "queued-resource",
        changed(ON_TPU_VM, {"accelerator": {"type": "tpu7x", "topology": "4x8x8"}}),
        "tpu7x is not served by the Cloud TPU API; use --target compute-engine or jobset",
    ),
    (
        "no zone",
        "queued-resource",
        changed(ON_TPU_VM, {"tpu_vm": {"mounts": {"/m": "/runs"}}}),
        "tpu_vm.zone is missing",
    ),
    (
        "a pod's worth of processes here",
        "local",
        changed(),
        "are too many processes for this machine (at most 16); set local.processes",
    ),
    (
        "a secret that is not there",
        "local",
        changed({"local": {"processes": 2, "devices": 128}, "secrets": {"T": {"file": "/no"}}}),
        "/no",
    ),
]

CASES += broken_places.CASES


def submit(tmp_path: Path, text: str, target: str, *options: str) -> int:
    file = tmp_path / "spec.yaml"
    file.write_text(text, encoding="utf-8")
    return cli.main(["submit", str(file), "--target", target, "--dry-run", *options])


@pytest.mark.parametrize(("what", "target", "data", "message"), CASES, ids=[case[0] for case in CASES])
def test_a_broken_spec_is_one_line(
    what: str, target: str, data: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(tmp_path, yaml.safe_dump(data), target) == 2, what
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("omnihuman submit: ")]
    assert len(lines) == 1 and message in lines[0], captured.err
    assert len(captured.err.splitlines()) == 1 and not captured.out and "Traceback" not in captured.err


def test_there_are_enough_broken_specs() -> None:
    assert len({case[3] for case in CASES}) >= 100 and len({case[3] for case in broken_places.CASES}) >= 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "the key 'name' is there twice"),
        ("name: [a\n", "not YAML"),
        ("? {a: b}\n: 1\n", "not YAML: a key has to be text"),
        ("? [a]\n: 1\n", "not YAML: a key has to be text"),
        ("pod_patch: {? {a: b} : 1}\n", "not YAML: a key has to be text"),
        ("name: 2026-13-01\n", "not YAML: month must be in 1..12"),
        ("name: caf\xe9\n", "not UTF-8: invalid continuation byte at byte 9"),
        (
            "{name: a, config: c, output: o, accelerator: {type: cpu}, pod_patch: &a {x: *a}}",
            "a YAML alias refers to the node that contains it",
        ),
        ("- a\n", "the spec: expects a mapping"),
        ("name: !!python/object/apply:os.system ['touch pwned']\n", "not YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_spec(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"spec\.yaml") as error:
        load_spec("spec.yaml")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "pwned").exists()


def test_a_missing_file_says_where_examples_are() -> None:
    with pytest.raises(FileNotFoundError, match="launch/examples/"):
        load_spec("none.yaml")


def test_allow_tag_lets_a_tag_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(tmp_path, yaml.safe_dump(changed({"image": "repo/trainer:1.2"})), "jobset", "--allow-tag") == 0
    assert yaml.safe_load(capsys.readouterr().out)["kind"] == "JobSet"


def test_what_only_looks_like_a_secret() -> None:
    """Other words, references, files, and what the spec itself says is none."""
    patch = {
        "spec": {
            "tolerations": [{"key": "google.com/tpu", "operator": "Exists"}],
            "containers": [
                {
                    "name": "side",
                    "image": IMAGE,
                    "args": ["--token-file", "/run/token", "TOKEN=$(cat /run/token) run"],
                    "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
                }
            ],
        }
    }
    env = {"TOKENIZERS_PARALLELISM": "false", "MAX_TOKENS": "77", "GOOGLE_CREDENTIALS_FILE": "/run/key", "MONKEY": "x"}
    checks.check(spec(env=env, pod_patch=patch), TARGETS["jobset"], checks.Options())
    with pytest.raises(ValueError, match=r"env\.SORT_KEY looks like a secret.*say not_secret: \[SORT_KEY\]"):
        spec(env={"SORT_KEY": "date"})
    spec(env={"SORT_KEY": "date"}, not_secret=["SORT_KEY"])
    spec(env={"A": "sk-" + "learn-" * 4}, not_secret=["env.A"])


@pytest.mark.parametrize(("name", "target"), EXAMPLES.items())
def test_the_examples_are_right(
    name: str, target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.main(["submit", f"launch/examples/{name}.yaml", "--target", target, "--dry-run"]) == 0, (
        capsys.readouterr().err
    )
    assert capsys.readouterr().out.strip()


def test_every_example_is_tested() -> None:
    assert {path.stem for path in (ROOT / "launch" / "examples").glob("*.yaml")} == EXAMPLES.keys()


def test_a_spec_says_all_fields_of_its_docstring() -> None:
    doc = RunSpec.__doc__ or ""
    missing = [
        name
        for name in RunSpec.__dataclass_fields__
        if name not in doc and name not in ("accelerator", "slurm", "tpu_vm", "local", "gpu_network")
    ]
    assert not missing


def test_devices_of_a_spec() -> None:
    two = spec(accelerator={"type": "v6e", "topology": "16x16", "slices": 2}).machines
    assert (two.groups, two.hosts, two.processes, two.devices) == (2, 64, 128, 512)
    ironwood = spec(accelerator={"type": "tpu7x", "topology": "2x2x2"}).machines
    assert (ironwood.chips, ironwood.devices_per_host, ironwood.devices) == (4, 8, 16)
    gpus = spec(accelerator={"type": "gb300", "nodes": 3}).machines
    assert (gpus.processes, gpus.chips, gpus.devices) == (3, 4, 12)


def test_preflight_asks_plan_about_the_very_run() -> None:
    argv = checks.plan_argv(spec(accelerator={"type": "v6e", "topology": "16x16", "slices": 2}, overrides={"seed": 4}))
    assert argv[3:5] == ["plan", f"--config={GOOD['config']}"]
    assert argv[5:] == ["--topology=v6e:16x16", "--slices=2", "--config.seed=4"]
    assert "--topology=h100:256" in checks.plan_argv(spec(accelerator={"type": "h100-mega", "nodes": 32}))
    argv = checks.plan_argv(spec(accelerator={"type": "v4", "topology": "2x2x2"}))
    assert argv[5:8] == ["--topology=v4:2x2x2", "--slices=1", "--estimate"], "no program for v4 can be compiled here"


@pytest.mark.slow
def test_preflight_of_what_cannot_be_compiled_is_by_formula(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    overrides = {"mesh.data": 1, "mesh.fsdp": 8, "mesh.context": 1, "data.plan.sequences_per_step": 8}
    config = str(ROOT / "configs" / "omnihuman_1b.py")
    data = changed({"config": config, "accelerator": {"type": "v4", "topology": "2x2x2"}, "overrides": overrides})
    code = submit(tmp_path, yaml.safe_dump(data), "jobset", "--preflight")
    error = capfd.readouterr().err
    assert code == 0, error
    assert (
        "preflight: by formula: no program for v4 can be compiled here" in error
        and "not compiled: everything here" in error
    )


def test_plan_has_figures_of_every_machine() -> None:
    for kind in GPU_MACHINES:
        argv = checks.plan_argv(spec(accelerator={"type": kind, "nodes": 2}))
        assert parse_topology(argv[5].removeprefix("--topology=")).devices == 2 * GPU_MACHINES[kind].gpus


@pytest.mark.parametrize(("nodes", "fits"), [(1, False), pytest.param(4, True, marks=pytest.mark.slow)])
def test_preflight_refuses_what_does_not_fit(
    nodes: int, fits: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the real `omnihuman plan`, which has a formula for GPUs and so is quick."""
    mesh = {"mesh.data": 1, "mesh.fsdp": 8 * nodes, "mesh.context": 1, "data.plan.sequences_per_step": 32}
    data = changed(
        {
            "config": str(ROOT / "configs" / ("omnihuman_1b.py" if fits else "omnihuman_13b.py")),
            "accelerator": {"type": "h100", "nodes": nodes},
            "overrides": mesh,
            "grace_s": 1,
        }
    )
    assert submit(tmp_path, yaml.safe_dump(data), "jobset", "--preflight") == (0 if fits else 2)
    captured = capfd.readouterr()
    assert "parameters" in captured.err and ("kind: JobSet" in captured.out) == fits
    assert ("GiB a device on 1 x h100: 8 devices, which is more than a device has" in captured.err) == (not fits)
    assert ("preflight: warning: a save of " in captured.err) == fits


def test_a_grace_period_that_no_save_fits_in_is_said() -> None:
    """13 G parameters of 16 bytes on 64 hosts: 3.25 GB each, 6.5 s."""
    assert not checks.grace_warning(spec(grace_s=7), 13_000_000_000)
    warning = checks.grace_warning(spec(grace_s=6), 13_000_000_000)
    assert warning.startswith("a save of 3.2 GB a host takes 6.5 s at an assumed 0.5 GB/s, more than grace_s 6:")
