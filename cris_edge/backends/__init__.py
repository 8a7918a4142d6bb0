"""Backends: inference runtimes that run a bundle's graphs, each imported only when it is used."""
