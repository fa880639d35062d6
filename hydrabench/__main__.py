"""The entry point: of the command `hydrabench`, and of `python -m hydrabench`, as torchrun starts it."""

from hydrabench.process import leave, prepare


def run() -> None:
    """Prepare the process, which importing hydrabench does not, and run the command."""
    prepare()  # before a command imports torch
    from hydrabench.cli import main  # noqa: PLC0415

    try:
        main()
    except SystemExit as done:
        leave(done.code)
        raise


if __name__ == "__main__":
    run()
