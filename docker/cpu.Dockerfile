# rlora on the CPU, from the lock file:  docker build -f docker/cpu.Dockerfile --build-arg TORCH_INDEX=URL -t rlora:cpu .
# TORCH_INDEX is PyTorch's CPU wheel index; leave it out where pip finds torch's +cpu build by itself.
FROM python:3.11-slim-bookworm
ARG TORCH_INDEX=""
# vLLM's CPU build compiles a few small kernels when it starts.
RUN apt-get update && apt-get install -y --no-install-recommends g++ libnuma1 make && rm -rf /var/lib/apt/lists/*
WORKDIR /rlora
COPY requirements requirements
COPY tools tools
COPY pyproject.toml Makefile README.md LICENSE ./
COPY rlora rlora
COPY recipes recipes
RUN make setup TORCH_INDEX="$TORCH_INDEX" && rm -rf ~/.cache/pip
ENV PATH=/rlora/.venv/bin:$PATH
CMD ["python", "recipes/arithmetic.py", "--run-dir", "/runs/quickstart"]
