"""Export targets: one file per runtime that a bundle can hold graphs for, found by `target.known_targets`."""
