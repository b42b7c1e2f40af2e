"""What the machine does: files that are whole or absent, locks, signals, memory, the processor."""
