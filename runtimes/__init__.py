"""Export: lower a trained network to the files of each runtime, compare them with PyTorch, and score them."""
