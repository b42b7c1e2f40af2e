"""From an answer's text to its tree."""
