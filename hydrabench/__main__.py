"""`python -m hydrabench`, as torchrun starts it."""

from hydrabench.cli import main

if __name__ == "__main__":
    main()
