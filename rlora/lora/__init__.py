"""The low-rank core: layers, initial values, the flat vector, PEFT files."""
