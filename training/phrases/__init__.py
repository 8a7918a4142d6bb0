"""Sentences about objects of photos, as people type them, each true of exactly one object."""
