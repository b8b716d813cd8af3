# Workers of `omnihuman curate` and `omnihuman encode` on CPU: MediaPipe, the phones of the lip-sync proxy, OpenCV's libraries,
# Ray, and what reads gs:// and s3://
#
#   docker build -f launch/docker/curation.Dockerfile --build-arg BASE=$BASE --build-arg SNAPSHOT=20261101T000000Z -t REPO/curation .
#
# BASE: as in trainer.Dockerfile, and without a default for the same reason. SNAPSHOT: a moment of Debian's archive, which pins
# the versions of the system's packages as constraints/py312.txt pins Python's.
ARG BASE
FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints/py312.txt constraints.txt
RUN ["python", "-m", "venv", "/opt/venv"]
COPY setup.py pyproject.toml README.md LICENSE ./
COPY configs configs
COPY data_pipelines data_pipelines
COPY launch launch
COPY omnihuman_jax omnihuman_jax
RUN /opt/venv/bin/pip install -c constraints.txt ".[curation,cluster,gcs,s3]"

FROM ${BASE}
ARG SNAPSHOT
LABEL org.opencontainers.image.title="omnihuman-jax curation" org.opencontainers.image.licenses="Apache-2.0"
RUN test -n "${SNAPSHOT}" \
 && sed -i "s#http://deb.debian.org/\(debian[a-z-]*\)#http://snapshot.debian.org/archive/\1/${SNAPSHOT}#" /etc/apt/sources.list.d/debian.sources \
 && apt-get -o Acquire::Check-Valid-Until=false update \
 && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
 && rm -rf /var/lib/apt/lists/*
RUN ["useradd", "--uid", "1000", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", "omnihuman"]
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 JAX_PLATFORMS=cpu
WORKDIR /tmp
USER 1000:1000
ENTRYPOINT []
CMD ["python", "-m", "omnihuman_jax.cli", "--help"]
