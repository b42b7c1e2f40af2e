"""Processes with deadlines and a memory limit: for answers that only slow arithmetic compares, and for rewards."""
