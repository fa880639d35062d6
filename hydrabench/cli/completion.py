"""The command completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

PROGRAM, VARIABLE = "hydrabench", "_HYDRABENCH_COMPLETE"


@click.command(short_help="Print the script for completion in a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script by which a shell completes commands, options, names of checkpoints, recipes and paths.

    \b
    Examples
      hydrabench completion bash >> ~/.bashrc
      hydrabench completion zsh >> ~/.zshrc
      hydrabench completion fish > ~/.config/fish/completions/hydrabench.fish
    """
    found = get_completion_class(shell)
    assert found is not None  # click knows these three
    click.echo(found(ctx.find_root().command, {}, PROGRAM, VARIABLE).source())
