"""Engines that generate completions, and the proof that they serve the newest policy."""
