"""Error handling, option groups, reading their values and printing summaries, for all commands."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hydrabench.cli.failures import one_line
from hydrabench.cli.streams import open_streams
from hydrabench.cli.values import ARCHITECTURE, DATASET, DEVICE, NORMALIZATION, RECIPE, Name, closed
from hydrabench.errors import ConfigError, HydrabenchError

if TYPE_CHECKING:
    from hydrabench.recipes import Recipe
    from hydrabench.workflows.evaluation.request import ModelRequest
    from hydrabench.workflows.run_options import RunOptions

Command = TypeVar("Command", bound=Callable[..., Any])
# How long a process waits before it reports an error: if the main process fails, too, torchrun ends all of them.
GRACE_SECONDS = 2.0
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
FOLDER = click.Path(path_type=Path, file_okay=False)
REF_HELP = (
    "Checkpoint: a file (ours, or a foreign .pth.tar or .pt), a run folder, hf:ORG/REPO[/FILE], or an id of "
    "`hydrabench zoo list`."
)


class Commands(click.Group):
    """Prints what `failures.one_line` makes of an error and exits with its status; any other keeps its traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        open_streams()
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # what fails at the interpreter's end has no status of its own
            return result
        except KeyboardInterrupt:
            if is_main_process():
                click.echo("interrupted; the same command with --resume goes on from here", err=True)
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            raise  # whoever read the output has had enough; click ends quietly
        except Exception as error:
            message = one_line(error)
            if message is None:
                raise
            _report(message)
            sys.exit(error.status if isinstance(error, HydrabenchError) else 1)


def _report(message: str) -> None:
    """Print an error once, from the main process, or from the only process that has it."""
    main = is_main_process()
    if not main:
        time.sleep(GRACE_SECONDS)
    with suppress(OSError):  # stderr is full or gone: the status says it
        click.echo(f"error: {message}" if main else f"error in process {os.environ['RANK']}: {message}", err=True)


class Minutes(click.FloatRange):
    """A number in a range, which NaN is not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it."""
        number: float = super().convert(value, param, ctx)
        return number if number == number else self.fail(f"{value!r} is no number of minutes", param, ctx)  # noqa: PLR0124


def options(*added: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order in which --help shows them."""

    def decorate(command: Command) -> Command:
        return functools.reduce(lambda inner, option: option(inner), reversed(added), command)

    return decorate


def _load_plugins(_context: click.Context, _option: click.Parameter, files: tuple[Path, ...]) -> None:
    if files:
        from hydrabench.recipes import load_plugin

        for file in files:
            load_plugin(file)


plugin_option = click.option(
    "--plugin",
    multiple=True,
    type=click.Path(path_type=Path),
    callback=_load_plugins,
    expose_value=False,
    is_eager=True,  # other options may take what it adds
    help="Python file that adds an objective, an evaluator, a data set, ...; may be repeated.",
)
machine_options = options(
    plugin_option,
    click.option("--device", type=DEVICE, default="auto", show_default=True, help="cpu, cuda, cuda:N, or auto."),
    click.option(
        "--threads",
        type=click.IntRange(1, 1024),
        help="CPU threads.  [default: 1, which is reproducible bit by bit; torchrun uses more cores by more processes]",
    ),
    click.option("--data-dir", type=FOLDER, envvar="HYDRABENCH_DATA", help="Where data sets lie.", show_envvar=True),
    click.option("--download", is_flag=True, help="Fetch a missing data set; not ImageNet."),
    click.option("--json", "as_json", is_flag=True, help="Print the summary, and nothing else, as JSON on stdout."),
)
training_options = options(
    click.option(
        "--precision",
        type=closed("float32", "bfloat16", "float16"),
        default="float32",
        show_default=True,
        help="Number format of the forward and backward passes: float32, bfloat16, or float16 with scaled gradients. "
        "Weights, losses, bounds and validation stay in float32, so training on bounds alone gains nothing. "
        "bfloat16 is faster on GPUs, and on CPUs with avx512_bf16.",
    ),
    click.option(
        "--compile", is_flag=True, help="Speed up the forward and backward passes by torch.compile, where it works."
    ),
    click.option(
        "--channels-last",
        is_flag=True,
        help="Store images and convolutions channels last: faster on GPUs, and on CPUs with avx512_bf16.",
    ),
    click.option(
        "--micro-batch",
        type=click.IntRange(1, 10**9),
        help="Most images that pass through the network at once; gradients are added up to those of batch_size. Batch "
        "norm normalises each part by itself.  [default: all of a process's share; halved whenever memory runs out]",
    ),
    click.option(
        "--save-minutes",
        type=Minutes(0, 1e6),
        default=10.0,
        show_default=True,
        help="Minutes between two saved states, from which --resume goes on within an epoch.",
    ),
    click.option("--tensorboard", is_flag=True, help="Also write the metrics for TensorBoard, to OUT/tensorboard."),
)
recipe_options = options(
    click.option(
        "--config",
        type=RECIPE,
        required=True,
        help="Recipe: a YAML file, or the name of one that comes with hydrabench.",
    ),
    click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, e.g. train.epochs=3."),
)
folder_options = options(
    click.option("--out", type=FOLDER, help="Run folder; the default is one of its own under runs/."),
    click.option("--resume", is_flag=True, help="Go on with an interrupted run in the same folder."),
)
model_options = options(
    click.option(
        "--model",
        metavar="SPEC",
        type=Name(tuple, files=True),
        help="In place of --ckpt, any network: FILE.py:NAME, package.module:NAME, torchvision:NAME, timm:NAME, "
        "robustbench:NAME, or a file: ONNX (.onnx), torch.export (.pt2) or TorchScript (.pt). Code that it names is "
        "run. With --ckpt, the code of a checkpoint that needs some.",
    ),
    click.option("--model-args", multiple=True, metavar="KEY=VALUE", help="Argument for NAME; may be repeated."),
    click.option(
        "--threat",
        type=click.Choice(["Linf", "L2", "corruptions"]),
        help="The threat model under which RobustBench lists robustbench:NAME.  [default: Linf]",
    ),
    click.option("--weights", type=click.Path(path_type=Path), help="State dict for --model: safetensors, .pt, .pth."),
)
foreign_options = options(
    click.option(
        "--arch",
        type=ARCHITECTURE,
        help="Architecture of a checkpoint file of other code (.pth.tar, .pt).  [default: what the file says]",
    ),
    click.option(
        "--dataset",
        type=DATASET,
        help="Data set of --model, or of a file of other code, such as cifar10. For any network, images of your own: "
        "folder:DIR (one folder per class), npz:FILE (images, labels), parquet:PATH, cifar10c:DIR/fog/3.  [default: "
        "what the file says]",
    ),
    click.option(
        "--source-density",
        type=float,
        help="Density of a checkpoint file of other code, HYDRA's --k.  [default: from its zeros]",
    ),
    click.option(
        "--normalization",
        type=NORMALIZATION,
        help="Normalisation to put in front of --model or a file of other code: none, cifar10, imagenet, or MEAN/STD, "
        "e.g. 0.49,0.48,0.44/0.2,0.19,0.2.  [default: what the file says; HYDRA's: none, imagenet for ImageNet]",
    ),
)
image_options = options(
    click.option("-n", "--images", "n", type=int, help="Only the first N test images.  [default: all]"),
    click.option("--skip", type=int, default=1, show_default=True, help="Only every K-th test image.", metavar="K"),
    click.option(
        "--ids",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Only the images that this file lists, one a line: positions, or ImageNet's file names.",
    ),
    click.option(
        "--precision",
        type=closed("float32", "float64", "bfloat16", "mixed"),
        default="float32",
        show_default=True,
        help="bfloat16 is for smoothing only; mixed, for pgd and autoattack, computes gradients in bfloat16 and "
        "verdicts in float32.",
    ),
)


def read_recipe(config: str, overrides: tuple[str, ...]) -> Recipe:
    """Load the recipe that --config and --set describe."""
    from hydrabench.recipes import load_recipe

    return load_recipe(config, overrides)


def density_override(section: str, density: float | None) -> tuple[str, ...]:
    """--density as an override of a recipe's section."""
    return () if density is None else (f"{section}.density={density!r}",)


def read_run_options(given: dict[str, Any]) -> RunOptions:
    """--device, --threads, --data-dir and --download."""
    from hydrabench.workflows.run_options import RunOptions

    if given["threads"] is not None:
        from hydrabench.runtime import use_threads

        use_threads(given["threads"])
    return RunOptions(given["device"], given["data_dir"], given["download"])


def read_foreign(given: dict[str, Any]) -> dict[str, Any]:
    """Return what `foreign_options` say of a checkpoint, taken out of the options of a command."""
    texts = {name: given.pop(name) for name in ("arch", "dataset", "normalization")}
    described = {**texts, "density": given.pop("source_density")}
    if texts["normalization"] is not None:
        from hydrabench.checkpoints.foreign.normalization import parse_normalization

        described["normalization"] = parse_normalization(texts["normalization"])
    return {name: value for name, value in described.items() if value is not None}


def read_network(
    given: dict[str, Any], ref: str | None, *, needed: bool = True
) -> tuple[dict[str, Any], ModelRequest | None]:
    """Return what a file does not say of itself, its code included, or the network of --model.

    Args: needed: whether there must be one.
    Raises: ConfigError for options that do not go together; UsageError if a network is needed and none is named.
    """
    chosen = {name: given.pop(name) for name in ("model", "model_args", "weights", "threat")}
    described = read_foreign(given)
    if chosen["model"] is None:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in ("model_args", "weights", "threat") if chosen[name])
        if named:
            raise ConfigError(f"{named} is for --model; with --ckpt leave it out")
        if ref is None and needed:
            raise click.UsageError("name a network: --ckpt FILE, run folder or zoo id, or --model FILE.py:NAME")
        return described, None
    if ref is not None:
        if chosen["model_args"] or chosen["weights"] or chosen["threat"]:
            raise ConfigError(
                "--ckpt has weights and arguments of its own; leave it or --weights, --model-args, --threat out"
            )
        return {**described, "model": chosen["model"]}, None
    for name, option in (("arch", "--arch"), ("density", "--source-density")):
        if name in described:
            raise ConfigError(f"{option} is for a checkpoint file of others; with --model leave it out")
    from hydrabench.workflows.evaluation.request import request_of

    return {}, request_of(chosen, described.get("normalization"), described.get("dataset"))


def read_training_options(given: dict[str, Any]) -> RunOptions:
    """Return what `machine_options` and `training_options` say."""
    keys = ("precision", "compile", "channels_last", "micro_batch", "save_minutes", "tensorboard")
    return replace(read_run_options(given), **{key: given[key] for key in keys})


def is_main_process() -> bool:
    """Return whether this process talks to the user: the only one, or the first that torchrun started."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def print_summary(summary: dict[str, Any], as_json: bool, title: str = "") -> None:
    """The summary of a run, from the main process: JSON, or one line per metric."""
    if not is_main_process():
        return
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    if title:
        click.echo(title)
    from hydrabench.reporting.statistics import metric_lines

    for line in metric_lines(summary):
        click.echo(line)
