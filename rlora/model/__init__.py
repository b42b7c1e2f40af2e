"""A frozen base on this machine, and scoring tokens with it."""
