"""``python -m aembus``: the same as the command ``aembus``."""

from __future__ import annotations

import sys

from aembus.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
