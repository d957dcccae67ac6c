"""``python -m headrace``: the command line without its console script."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the current directory, which may be a repository of models

    from headrace.cli.main import main

    raise SystemExit(main())
