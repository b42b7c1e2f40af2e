"""The parts of a report's page that are no Python: its frame, its style and what it does."""
