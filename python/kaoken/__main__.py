"""`python -m kaoken`: the same as the `kaoken` command."""

from __future__ import annotations

import sys

from kaoken.cli import main

if __name__ == "__main__":
    sys.exit(main())
