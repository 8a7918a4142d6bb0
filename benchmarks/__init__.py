"""Beside `cris-edge benchmark`: what a bundle is faster than, and how near it is to the machine's limit."""
