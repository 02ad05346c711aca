# docker build -f docker/cuda.Dockerfile -t disa:cuda .
# docker run --rm --gpus all --shm-size 8g -v "$PWD/runs:/home/disa/runs" disa:cuda run /opt/disa/recipes/quickstart.yaml
# Torch brings the CUDA libraries; the host has to have the driver and the NVIDIA container toolkit.
# The code verifier's sandbox needs user namespaces: add --security-opt seccomp=unconfined.
FROM python:3.11-slim-bookworm

# bubblewrap: the sandbox of model-written programs. A compiler: kernels are compiled while running.
RUN apt-get update \
    && apt-get install --no-install-recommends -y bubblewrap=0.8.* gcc=4:12.* libc6-dev=2.36-* \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 disa

ENV UV_SYSTEM_PYTHON=1
RUN pip install --no-cache-dir uv==0.13.*

COPY pyproject.toml README.md LICENSE /opt/disa/
COPY src /opt/disa/src
COPY recipes /opt/disa/recipes
RUN uv pip install --no-cache '/opt/disa[vllm]'

USER 1000
WORKDIR /home/disa
ENTRYPOINT ["disa"]
CMD ["--help"]
