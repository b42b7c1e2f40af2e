"""The hot swap and its evidence: that the sampler serves the policy that was trained."""
