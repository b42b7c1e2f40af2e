"""Low-rank updates of other layers and from another start: experts, the unembedding, PiSSA."""
