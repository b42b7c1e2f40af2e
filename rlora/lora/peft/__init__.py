"""Adapters as PEFT folders, written and read."""
