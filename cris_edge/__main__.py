"""Run the command line as ``python -m cris_edge``."""

from cris_edge.cli import main

if __name__ == "__main__":
    main(prog_name="cris-edge")
