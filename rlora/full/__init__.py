"""Full fine-tuning as a mode of the same trainer: every weight of the model is trained. The baseline of comparisons."""
