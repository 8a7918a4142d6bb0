"""Training data: labelled files, REFER and gRefCOCO, augmentation, and batches."""
