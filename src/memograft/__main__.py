"""`python -m memograft` is the command `memograft`."""

from memograft.cli import main

if __name__ == "__main__":
    main()
