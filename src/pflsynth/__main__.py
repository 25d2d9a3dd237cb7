"""``python -m pflsynth``: the command line."""

from pflsynth.cli import main

if __name__ == "__main__":
    main()
