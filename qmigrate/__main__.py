"""``python -m qmigrate`` is the command ``qmigrate``."""

import sys

from qmigrate.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
