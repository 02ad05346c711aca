# docker build -f docker/cpu.Dockerfile -t disa:cpu .
# docker run --rm -v "$PWD/runs:/home/disa/runs" disa:cpu run /opt/disa/recipes/quickstart.yaml
# The code verifier's sandbox needs user namespaces: add --security-opt seccomp=unconfined.
FROM python:3.11-slim-bookworm

# bubblewrap: the sandbox of model-written programs.
RUN apt-get update \
    && apt-get install --no-install-recommends -y bubblewrap=0.8.* \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 disa

ENV UV_SYSTEM_PYTHON=1 UV_TORCH_BACKEND=cpu
RUN pip install --no-cache-dir uv==0.13.*

COPY pyproject.toml README.md LICENSE /opt/disa/
COPY src /opt/disa/src
COPY recipes /opt/disa/recipes
RUN uv pip install --no-cache /opt/disa

USER 1000
WORKDIR /home/disa
ENTRYPOINT ["disa"]
CMD ["--help"]
