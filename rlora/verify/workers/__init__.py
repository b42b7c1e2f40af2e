"""Processes with a deadline for answers that only slow arithmetic can compare."""
