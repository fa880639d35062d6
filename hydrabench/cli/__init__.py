"""The command line: parse, load a config, call one workflow. Heavy imports live inside the commands."""

from __future__ import annotations

import click

from hydrabench import __version__
from hydrabench.cli.common import Commands
from hydrabench.cli.completion import completion
from hydrabench.cli.evaluation import attack, certify
from hydrabench.cli.gating import baseline, gate
from hydrabench.cli.listing import listing
from hydrabench.cli.reporting import report
from hydrabench.cli.training import finetune, pipeline, prune, train
from hydrabench.cli.verify import verify
from hydrabench.cli.vnncomp import vnncomp
from hydrabench.cli.zoo import zoo


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="hydrabench")
def main() -> None:
    """Train, prune, attack, certify and compare robust image classifiers.

    \b
    Examples
      hydrabench pipeline --config digits-crown-ibp --out runs/digits
      hydrabench attack  --ckpt digits-crown-ibp-99 --attack pgd
      hydrabench certify --ckpt digits-crown-ibp-99 --method crown-ibp
      hydrabench report  runs/evaluations --out reports/mine
      hydrabench baseline runs/evaluations --out robustness
      hydrabench gate    runs/evaluations --against robustness
      hydrabench verify  runs/evaluations/digits-crown-ibp-99/crown-ibp-v1-16_255
    """


for command in (
    train,
    prune,
    finetune,
    attack,
    certify,
    report,
    gate,
    baseline,
    verify,
    vnncomp,
    pipeline,
    zoo,
    listing,
    completion,
):
    main.add_command(command)

__all__ = ["main"]
