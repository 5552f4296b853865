"""`python -m fewstep` is the command."""

from fewstep.cli import main

if __name__ == "__main__":
    main()
