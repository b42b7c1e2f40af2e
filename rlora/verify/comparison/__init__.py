"""Whether two trees are the same: cheap proofs, and what only a worker can compute."""
