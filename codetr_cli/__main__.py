"""`python -m codetr_cli` is `codetr`."""

import sys

from codetr_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
