"""`python -m autoresearch`: the command line, without its script on the PATH."""

from autoresearch.cli.app import main

main(prog_name="autoresearch")
