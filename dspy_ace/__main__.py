"""Runs the command `dspy-ace`: `python -m dspy_ace`."""

from .cli import main

if __name__ == "__main__":
    main()
