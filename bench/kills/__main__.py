"""``python -m bench.kills``."""

from __future__ import annotations

import sys

from bench.kills.cli import main

sys.exit(main())
