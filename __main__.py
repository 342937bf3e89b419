"""`python -m glscl` and `accelerate launch -m glscl` are the command `glscl`."""

from glscl.cli import main

if __name__ == "__main__":
    main()
