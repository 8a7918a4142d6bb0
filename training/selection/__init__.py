"""Training of the selector on cached candidates: examples, training loop, validation, ablation."""
