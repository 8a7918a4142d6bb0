"""Lowering: a trained CRIS becomes the files that each runtime runs best, is proved equal, and is scored."""
