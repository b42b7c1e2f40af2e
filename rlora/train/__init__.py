"""From judged completions to one update: batches, losses, the optimizer, and the memory that they take."""
