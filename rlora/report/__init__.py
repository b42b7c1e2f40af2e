"""A run directory as one page: what the policy says, whether it learns, and if not, why."""
