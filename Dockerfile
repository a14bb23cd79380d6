# Images with `codetr serve`, for a CPU or for NVIDIA's GPUs; docs/serving.md shows how they are used.
#
#   docker build --target cpu -t codetr:cpu .
#   docker build --target cuda -t codetr:cuda .
#
# PYTHON_IMAGE  image of Python that both are made from
# TORCH_INDEX   address of a package index for torch and torchvision only, e.g. one that has wheels for CPUs; without it
#               pip takes those of the default index, which are for GPUs and five times as large
# EXTRAS        optional parts of codetr, separated by commas
# VERSION       for the label of the image

ARG PYTHON_IMAGE=python:3.12-slim-bookworm

# ---- the wheel, with the compiled operator for CPUs; any release of the compiler will do
FROM ${PYTHON_IMAGE} AS wheel
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY codetr_cli codetr_cli
COPY presets presets
RUN python -m venv /opt/build \
    && /opt/build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# ---- an environment with all packages; torch first: it is the largest, and changes least
FROM ${PYTHON_IMAGE} AS packages
ARG TORCH_INDEX=
RUN python -m venv /opt/codetr \
    && /opt/codetr/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
ARG EXTRAS=serve
COPY --from=wheel /wheels /wheels
RUN /opt/codetr/bin/pip install --no-cache-dir "$(ls /wheels/codetr_cli-*.whl)[$EXTRAS]" \
    && /opt/codetr/bin/codetr --version

# ---- what both images have
FROM ${PYTHON_IMAGE} AS base
ARG VERSION=dev
LABEL org.opencontainers.image.title="codetr" \
      org.opencontainers.image.description="Co-DETR object detectors over HTTP: codetr serve" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
ENV PATH=/opt/codetr/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CODETR_CACHE=/home/codetr/cache
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin codetr
WORKDIR /home/codetr
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["codetr"]
# Everybody who reaches the port can use the model: set CODETR_API_KEY. A run folder, or a folder with
# model.safetensors, is mounted at /model.
CMD ["serve", "/model", "--host", "0.0.0.0", "--port", "8000"]

# ---- for NVIDIA's GPUs: the wheels of torch bring CUDA, the host its driver. Triton compiles the launchers of its
#      kernels with a C compiler.
FROM base AS cuda
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages /opt/codetr /opt/codetr
USER 10001

# ---- for a CPU; the last one is what is built without --target
FROM base AS cpu
COPY --from=packages /opt/codetr /opt/codetr
USER 10001
