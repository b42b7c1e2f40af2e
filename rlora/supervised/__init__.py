"""Supervised fine-tuning: the same policies, trainer and run directories, on conversations in place of rewards."""
