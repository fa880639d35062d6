"""`python -m hydrabench`, as torchrun starts it."""

from hydrabench.cli import main
from hydrabench.process import leave

if __name__ == "__main__":
    try:
        main()
    except SystemExit as done:
        leave(done.code)
        raise
