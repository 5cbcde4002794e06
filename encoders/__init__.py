"""One modality in, features out. Knows no language model and no prompt."""
