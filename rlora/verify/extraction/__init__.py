"""Which text of a completion is its answer."""
