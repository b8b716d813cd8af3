# The trainer for TPU (ACCELERATOR=tpu) or GPU (ACCELERATOR=cuda12): JAX and this package, neither PyTorch nor curation's networks.
#
#   docker build -f launch/docker/trainer.Dockerfile --build-arg BASE=$BASE --build-arg ACCELERATOR=tpu -t REPO/trainer .
#
# BASE has no default on purpose. It is Debian's Python 3.12 by digest, and a digest is only right while somebody looks after it:
#   BASE=docker.io/library/python:3.12-slim-bookworm@$(docker buildx imagetools inspect \
#     docker.io/library/python:3.12-slim-bookworm --format '{{.Manifest.Digest}}')
ARG BASE
FROM ${BASE} AS build
ARG ACCELERATOR=tpu
ENV PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# Packages first: a change of our code does not install them again.
COPY constraints/py312.txt constraints.txt
COPY launch/docker/constraints-${ACCELERATOR}.txt ./
RUN ["python", "-m", "venv", "/opt/venv"]
# It has the TPU runtime that plans are compiled with; on TPUs it is the one that JAX was released with.
RUN sed -i "/^libtpu==/d" constraints.txt \
 && /opt/venv/bin/pip install --only-binary=:all: -c constraints.txt -c "constraints-${ACCELERATOR}.txt" \
    "jax[${ACCELERATOR}]" gcsfs s3fs
COPY setup.py pyproject.toml README.md LICENSE ./
COPY configs configs
COPY data_pipelines data_pipelines
COPY launch launch
COPY omnihuman_jax omnihuman_jax
RUN /opt/venv/bin/pip install -c constraints.txt -c "constraints-${ACCELERATOR}.txt" .

FROM ${BASE}
LABEL org.opencontainers.image.title="omnihuman-jax trainer" org.opencontainers.image.licenses="Apache-2.0"
RUN ["useradd", "--uid", "1000", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", "omnihuman"]
COPY --from=build /opt/venv /opt/venv
# Specs name configs by their path here.
COPY configs /app/configs
# The root file system may be read-only: what is written goes to /tmp and to volumes.
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
USER 1000:1000
# Python is process 1 and gets SIGTERM itself; launchers replace the command by an argv of the same kind.
ENTRYPOINT []
CMD ["python", "-m", "omnihuman_jax.cli", "--help"]
