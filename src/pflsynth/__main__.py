"""``pflsynth`` and ``python -m pflsynth``: the command line, with Ctrl-C heeded while it is still being loaded."""

from __future__ import annotations

import sys


def main() -> None:
    """Load the command line and run a verb."""
    try:
        from pflsynth.cli import main as run

        run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
