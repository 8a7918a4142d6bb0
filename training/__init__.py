"""Training of CRIS in PyTorch: model, data, loss, loop, evaluation."""
