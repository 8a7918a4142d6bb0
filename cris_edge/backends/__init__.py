"""The runtimes that can compute a bundle's graphs, each imported only when it is used."""
