"""Specs that are valid YAML, and would have cost a night: what each target would not find, reach or outlive."""

from typing import Any

from tests.launch.specs import GOOD, ON_COMPUTE_ENGINE, ON_SLURM, ON_TPU_VM, SLURM, TPU_VM, changed

GIB, MEGA = {"profile": "gib"}, {"type": "h100-mega", "nodes": 32}
FUSE = {"name": "data", "mount": "/data", "source": {"csi": {"driver": "gcsfuse.csi.storage.gke.io"}}}
CASES: list[tuple[str, str, dict[str, Any], str]] = [
    (
        "a dataset on no volume",
        "jobset",
        changed({"overrides": {"data.dataset": "/datta/set"}}),
        "overrides.data.dataset '/datta/set' is on none of volumes (/dev/shm, /tmp, /runs), so the trainer",
    ),
    (
        "a dataset in the home",
        "jobset",
        changed({"overrides": {"data.dataset": "data/set"}}),
        "overrides.data.dataset 'data/set' must be an absolute path with --target jobset",
    ),
    (
        "a dataset in another cloud",
        "jobset",
        changed({"overrides": {"data.dataset": "az://b/set"}}),
        "overrides.data.dataset 'az://b/set': it must be an absolute path with --target jobset, or the URI of a bucket",
    ),
    (
        "a dataset on the web",
        "slurm",
        changed(ON_SLURM, {"overrides": {"data.dataset": "https://h/set"}}),
        "'https://h/set': it must be an absolute path",
    ),
    (
        "a dataset beside the mounts",
        "compute-engine",
        changed(ON_COMPUTE_ENGINE, {"output": "/runs/r", "overrides": {"data.dataset": "/mnt/set"}}),
        "'/mnt/set' is on none of tpu_vm.mounts (/runs)",
    ),
    (
        "checkpoints in S3",
        "jobset",
        changed({"checkpoints": "s3://my-runs/x"}),
        "checkpoint.directory is s3://my-runs/x: Orbax cannot save there",
    ),
    (
        "checkpoints in Azure, by override",
        "slurm",
        changed(ON_SLURM, {"overrides": {"checkpoint.directory": "abfs://c/x"}}),
        "checkpoint.directory is abfs://c/x: abfs:// is not supported",
    ),
    (
        "one slash",
        "jobset",
        changed({"checkpoints": "gs:/my-runs/x"}),
        "checkpoint.directory is gs:/my-runs/x: write gs://BUCKET/PATH",
    ),
    (
        "no slash",
        "slurm",
        changed(ON_SLURM, {"checkpoints": "gs:my-runs/set"}),
        "checkpoint.directory is gs:my-runs/set: write gs://BUCKET/PATH",
    ),
    (
        "no bucket",
        "jobset",
        changed({"checkpoints": "gs:///x"}),
        "checkpoint.directory is gs:///x names no bucket",
    ),
    (
        "a bucket in capitals",
        "jobset",
        changed({"checkpoints": "gs://My-Runs/x"}),
        "names no bucket: gs://BUCKET/FOLDER, lower case",
    ),
    (
        "output in a bucket on VMs",
        "compute-engine",
        changed(ON_COMPUTE_ENGINE, {"output": "s3://my-runs/x"}),
        "output 's3://my-runs/x': it must be an absolute path with --target compute-engine, or gs://BUCKET/FOLDER",
    ),
    (
        "a volume over the configs",
        "jobset",
        changed({"volumes": [*GOOD["volumes"], FUSE | {"mount": "/app"}]}),
        "volume 'data': mount '/app' hides /app of the image, where configs and Python are; mount it elsewhere",
    ),
    (
        "a volume over everything",
        "jobset",
        changed({"volumes": [*GOOD["volumes"], FUSE | {"mount": "/"}]}),
        "hides /app of the image",
    ),
    (
        "a volume over Python",
        "jobset",
        changed({"volumes": [*GOOD["volumes"], FUSE | {"mount": "/opt/venv/lib"}]}),
        "mount '/opt/venv/lib' hides /opt/venv of the image",
    ),
    ("three hours of grace", "jobset", changed({"grace_s": 10800}), "grace_s 10800: GKE gives a pod at most 3600 s"),
    (
        "a time shorter than the grace period",
        "slurm",
        changed(ON_SLURM, {"slurm": SLURM | {"time": "2"}}),
        "slurm.time '2' is 120 s, and a job is asked to stop up to grace_s 120 + 60 s before it ends",
    ),
    (
        "a time that leaves no step",
        "slurm",
        changed(ON_SLURM, {"slurm": SLURM | {"time": "00:03:00"}}),
        "give it more than 180 s",
    ),
    (
        "a time by directive",
        "slurm",
        changed(ON_SLURM, {"slurm": {k: v for k, v in SLURM.items() if k != "time"} | {"directives": ["--time=5"]}}),
        "slurm.directives: '--time=5' is set by the launcher from the spec's own fields",
    ),
    (
        "the environment by directive",
        "slurm",
        changed(ON_SLURM, {"slurm": SLURM | {"directives": ["--export=ALL"]}}),
        "slurm.directives: '--export=ALL' is set by the launcher",
    ),
    (
        "a quote in a path",
        "slurm",
        changed(ON_SLURM, {"output": "/shared/o'hara/run"}),
        'has a "\'", which SLURM cannot have in the name of a log',
    ),
    (
        "a backslash in a path",
        "slurm",
        changed(ON_SLURM, {"output": "/shared/a\\b"}),
        "which SLURM cannot have in the name of a log",
    ),
    (
        "gb200 without its NVLink domain",
        "jobset",
        changed({"accelerator": {"type": "gb200", "nodes": 2}}),
        "gpu_network.compute_domain is what pods of gb200 and gb300 share NVLink by, and gb200 needs it",
    ),
    (
        "more gb300 than a domain has",
        "jobset",
        changed({"accelerator": {"type": "gb300", "nodes": 36}, "gpu_network": {"compute_domain": "d"}}),
        "accelerator.nodes 36: one ComputeDomain of gb300 has at most 18 nodes",
    ),
    (
        "a domain of h100",
        "jobset",
        changed({"accelerator": MEGA, "gpu_network": {"compute_domain": "d"}}),
        "h100-mega has none; leave it out",
    ),
    (
        "RDMA on A3 Mega",
        "jobset",
        changed({"accelerator": MEGA, "gpu_network": GIB}),
        "gpu_network.profile gib is of h200, b200, gb200, not of h100-mega",
    ),
    (
        "an unknown network",
        "jobset",
        changed({"accelerator": MEGA, "gpu_network": {"profile": "efa"}}),
        "gpu_network.profile 'efa' is unknown; it is one of tcpxo, gib",
    ),
    (
        "TCPXO without its daemon",
        "jobset",
        changed({"accelerator": MEGA, "gpu_network": {"profile": "tcpxo"}}),
        "gpu_network.daemon_image is tcpxo's receive daemon: give it there, by digest",
    ),
    (
        "a daemon by tag",
        "jobset",
        changed({"accelerator": MEGA, "gpu_network": {"profile": "tcpxo", "daemon_image": "r/d:1"}}),
        "image of initContainers[tcpxo-daemon] 'r/d:1' is given by tag",
    ),
    (
        "too few networks",
        "jobset",
        changed({"accelerator": {"type": "h200", "nodes": 32}, "gpu_network": GIB | {"networks": ["a"]}}),
        "gpu_network.networks has 1 names; h200 has 8 network cards",
    ),
    ("a GPU's network on a TPU", "jobset", changed({"gpu_network": GIB}), "gpu_network is for GPU nodes, not for v5p"),
    (
        "a GPU's network on SLURM",
        "slurm",
        changed(ON_SLURM, {"gpu_network": GIB}),
        "gpu_network has no effect with --target slurm",
    ),
    (
        "eight chips of a machine that has four",
        "jobset",
        changed({"accelerator": {"type": "v5p", "topology": "2x2x2", "one_host": True}}),
        "accelerator.one_host is for v5e and v6e 2x4, whose 8 chips one machine has; not for v5p",
    ),
    (
        "two hosts where the API has one",
        "queued-resource",
        changed(ON_TPU_VM, {"accelerator": {"type": "v6e", "topology": "2x4"}}),
        "v6e 2x4 is one machine of 8 chips here; say one_host: true",
    ),
    (
        "v4 on Compute Engine",
        "compute-engine",
        changed(ON_COMPUTE_ENGINE, {"accelerator": {"type": "v4", "topology": "4x4x4"}}),
        "accelerator.type v4 is not served by Compute Engine, only v5p, v6e, tpu7x are",
    ),
    (
        "a GPU on Compute Engine",
        "compute-engine",
        changed(ON_COMPUTE_ENGINE, {"accelerator": {"type": "h100"}}),
        "use --target jobset or slurm",
    ),
    (
        "two slices in one group",
        "compute-engine",
        changed(ON_COMPUTE_ENGINE, {"accelerator": {"type": "v6e", "topology": "16x16", "slices": 2}}),
        "accelerator.slices 2: a group is one slice; several need --target jobset",
    ),
    (
        "a runtime of the other API",
        "compute-engine",
        changed(ON_COMPUTE_ENGINE, {"tpu_vm": TPU_VM | {"runtime_version": "v"}}),
        "tpu_vm.runtime_version is the Cloud TPU API's; Compute Engine has tpu_vm.image_family",
    ),
    (
        "flex-start of the other API",
        "queued-resource",
        changed(ON_TPU_VM, {"tpu_vm": TPU_VM | {"flex_start": "3d"}}),
        "tpu_vm.flex_start is for --target compute-engine; leave it out",
    ),
    (
        "flex-start in words",
        "compute-engine",
        changed(ON_COMPUTE_ENGINE, {"tpu_vm": TPU_VM | {"flex_start": "a week"}}),
        "tpu_vm.flex_start 'a week' must be a time such as 3d, 12h or 1d6h",
    ),
    (
        "flex-start and spot",
        "compute-engine",
        changed(ON_COMPUTE_ENGINE, {"spot": True, "tpu_vm": TPU_VM | {"flex_start": "3d"}}),
        "tpu_vm.flex_start is a kind of capacity, as spot and reservation are; keep one of them",
    ),
]
