"""The commands zoo list, show, fetch, verify and export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from hydrabench.cli.common import (
    foreign_options,
    machine_options,
    model_options,
    plugin_option,
    read_network,
    read_run_options,
)
from hydrabench.cli.values import ARCHITECTURE, CHECKPOINT, DATASET, ENTRY, OBJECTIVE


@click.group(short_help="Checkpoints by name: list, show, fetch, verify, export.")
def zoo() -> None:
    """Checkpoints by name: those that come with hydrabench, and released ones that are fetched from the web.

    \b
    Examples
      hydrabench zoo list --dataset cifar10 --density 0.01
      hydrabench zoo fetch hydra/cifar10-wrn_28_4-adv-99
      hydrabench zoo verify
    """


@zoo.command("list", short_help="List the checkpoints and their accuracies in percent.")
@click.option("--dataset", type=DATASET, help="Only this data set, for example cifar10.")
@click.option("--arch", type=ARCHITECTURE, help="Only this architecture, for example wrn_28_4.")
@click.option("--objective", type=OBJECTIVE, help="Only this training objective, for example trades.")
@click.option("--density", type=float, help="Only this fraction of weights kept, for example 0.01.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with everything that is known, instead of a table.")
def zoo_list(as_json: bool, **wanted: Any) -> None:
    """List the checkpoints, all or those with the given properties, and their accuracies in percent.

    `robust` is the lowest accuracy that an attack left, `verified` the highest that bounds proved, `certified` that of
    randomized smoothing, all in the ball of the given radius, L∞ unless it says L2; `zoo show` has their settings.
    Where `radius` says "paper", the authors' numbers stand. A narrow terminal gets fewer columns, --json all.

    \b
    Example
      hydrabench zoo list --dataset cifar10 --density 0.01
    """
    from hydrabench.workflows import zoo_listing

    entries = zoo_listing.list_entries(**wanted)
    if as_json:
        click.echo(json.dumps(entries, indent=2))
    elif entries:
        click.echo(_table(entries))
    else:
        click.echo("no checkpoint has all of these properties", err=True)


def _table(entries: Sequence[dict[str, Any]]) -> str:
    """One line per checkpoint under a line of titles, in columns of equal width, as many as the terminal has room for.

    Accuracies are in percent: the lowest that attacks leave, the highest that is verified or certified.
    """
    columns = {key: [str(entry[key]) for entry in entries] for key in ("id", "dataset", "arch", "objective", "where")}
    columns["radius"] = [entry["radius"] or ("paper" if any(entry["accuracy"].values()) else "") for entry in entries]
    columns["density"] = [f"{entry['density']:g}" for entry in entries]
    columns["size"] = ["?" if entry["bytes"] is None else f"{entry['bytes'] / 1000:.0f} kB" for entry in entries]
    for name in ("clean", "robust", "verified", "certified"):
        found = [entry["accuracy"][name] for entry in entries]
        columns[name] = ["" if value is None else f"{100 * value:.1f}" for value in found]
    widths = {name: max(map(len, (name, *cells))) for name, cells in columns.items()}
    order = [
        *("id", "dataset", "arch", "objective", "density"),
        *("clean", "robust", "verified", "certified", "radius", "size", "where"),
    ]
    room = shutil.get_terminal_size().columns
    order = [name for name in order if any(columns[name])]
    for name in ("size", "dataset", "objective", "arch", "density", "where"):  # what the id says, too, goes first
        gap = "  " if name != "where" else " "  # the last resort before something goes that stands nowhere else
        if sum(widths[one] + len(gap) for one in order) - len(gap) <= room:
            break
        order.remove(name)
    rows = [{name: name for name in order}]
    rows += [{name: columns[name][row] for name in order} for row in range(len(entries))]
    return "\n".join(gap.join(f"{row[name]:<{widths[name]}}" for name in order).rstrip() for row in rows)


@zoo.command("show", short_help="Print the manifest's entry of a checkpoint, as JSON.")
@click.argument("name", metavar="ID", type=ENTRY)
def zoo_show(name: str) -> None:
    """Print everything the manifest says of one checkpoint, as JSON.

    \b
    Example
      hydrabench zoo show digits-trades-95
    """
    from hydrabench.workflows import zoo_listing

    click.echo(zoo_listing.show_entry(name))


@zoo.command("fetch", short_help="Download a checkpoint, check its hash, print its path.")
@click.argument("name", metavar="ID", type=ENTRY)
@click.option("--offline", is_flag=True, help="Use the cache only; fail if the checkpoint is not there.")
def zoo_fetch(name: str, offline: bool) -> None:
    """Download a checkpoint if it is not here yet, check its hash, and print the path of its file.

    Files from the web are kept in the folder HYDRABENCH_CACHE (default ~/.cache/hydrabench) and fetched once. An
    interrupted download goes on where it stopped, if the server can do that.

    \b
    Example
      hydrabench zoo fetch hydra/cifar10-wrn_28_4-adv-99
    """
    from hydrabench.checkpoints import find_entry

    find_entry(name)  # before torch is imported
    from hydrabench.workflows import zoo as workflow

    click.echo(str(workflow.fetch_entry(name, offline=offline)))


@zoo.command("verify", short_help="Evaluate shipped checkpoints again, and compare.")
@click.argument("names", metavar="[ID]...", nargs=-1, type=ENTRY)
@machine_options
def zoo_verify(names: tuple[str, ...], **given: Any) -> None:
    """Evaluate shipped checkpoints again (all if no ID is given) and compare every image with the shipped ledgers.

    Of ledgers of randomized smoothing, which take thousands of passes an image, the first 20 images are judged again.

    \b
    Example
      hydrabench zoo verify digits-trades-95
    """
    from hydrabench.checkpoints import find_entry
    from hydrabench.workflows import refusals

    refusals.refuse_machine(given, "evaluation")
    for name in names:
        find_entry(name)
    from hydrabench.workflows import zoo as workflow

    lines = workflow.verify_shipped(names, options=read_run_options(given))
    click.echo(json.dumps(lines, indent=2) if given["as_json"] else f"{len(lines)} ledgers agree")


@zoo.command("export", short_help="Write a checkpoint or --model in another format.")
@click.argument("ref", required=False, type=CHECKPOINT)
@model_options
@click.option(
    "--format",
    "layout",
    required=True,
    type=click.Choice(["dense", "masked", "compact", "hydra", "state-dict", "onnx", "onnx-narrow", "hf"]),
    help="dense, masked, compact: .safetensors. hydra: the original code's .pth.tar. state-dict: .pt. onnx: .onnx. "
    "onnx-narrow: .onnx without the channels that pruning disconnected. hf: a folder for the Hugging Face hub.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File, or folder of --format hf, to write.")
@foreign_options
@plugin_option
def zoo_export(ref: str | None, layout: str, out: Path, **given: Any) -> None:
    """Write the checkpoint REF (file, run folder or zoo id), or the network of --model, in another format.

    REF may be a .pth.tar file of the original HYDRA code, RobustBench's of it, or a state dict of others. A masked one
    does not say its density, which is taken from the file NAME_dense.pth.tar beside it, or from --source-density.
    With --format hydra, the file is masked if REF is, else dense; its entry `k` is the --k that the original needs.
    hydra and state-dict files hold the input normalisation for us to read back, not for other code to use; an onnx
    file has it in its graph, from `images` in [0, 1], in batches of any size, to `logits`. --format onnx needs
    `pip install 'hydrabench[onnx]'`. onnx-narrow computes the same logits up to rounding with smaller tensors: at 99 %
    most channels are gone, and the file is faster in any runtime. An hf folder holds model.safetensors, config.json and
    a model card with the numbers of the zoo; `--ckpt FOLDER`, and `--ckpt hf:ORG/REPO` once it is on the hub, open it.

    \b
    Examples
      hydrabench zoo export digits-trades-95 --format masked --out digits-trades-95.safetensors
      hydrabench zoo export model_best.pth.tar --dataset svhn --source-density 0.1 --format masked --out a.safetensors
      hydrabench zoo export w.pt --arch wrn_28_10 --dataset cifar10 --normalization none --format dense --out b
      hydrabench zoo export runs/pruned --format hydra --out model_best.pth.tar
      hydrabench zoo export digits-crown-ibp-95 --format onnx --out digits-crown-ibp-95.onnx
      hydrabench zoo export cifar10-crown-ibp-99 --format onnx-narrow --out phone.onnx
      hydrabench zoo export --model mynet.py:build --weights w.pt --dataset cifar10 --format compact --out mynet
    """
    from hydrabench.workflows import refusals

    described, request = read_network(given, ref)
    refusals.require_place(out)
    refusals.require_free(out)
    if request is None:
        refusals.header_of(str(ref))
    else:
        refusals.refuse_model(request)
    from hydrabench.workflows import zoo as workflow

    sha256 = workflow.export_entry(request or str(ref), out, layout, described=described)
    weights = out / "model.safetensors" if out.is_dir() else out
    size = weights.stat().st_size
    click.echo(f"{out}: {size / 1000:.1f} kB, SHA-256 {sha256}")
    if layout == "compact":
        dense = workflow.dense_bytes(out)
        click.echo(f"its tensors take {dense / 1000:.1f} kB in a dense file, {dense / size:.1f} times as much")
