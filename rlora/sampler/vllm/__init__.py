"""vLLM as a sampler."""
