"""`python -m cli` is `livery`."""

from cli.app import main

main()
