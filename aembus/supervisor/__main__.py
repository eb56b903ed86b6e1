"""``python -m aembus.supervisor``: the child of a ``with supervisor`` block."""

from __future__ import annotations

import sys

from aembus.supervisor.supervisor import run_child

if __name__ == "__main__":
    sys.exit(run_child(int(sys.argv[1])))
