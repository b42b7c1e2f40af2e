"""Scores of a policy on problems it was not trained on: in a run, and by itself."""
