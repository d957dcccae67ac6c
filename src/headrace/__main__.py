"""``python -m headrace``: the command line without its console script."""

from headrace.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
