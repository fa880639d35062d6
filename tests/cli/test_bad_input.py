"""Bad input gets one clear line, exit code 1 (2 for usage), and leaves nothing behind."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from safetensors.torch import save_file

from hydrabench.cli import common
from hydrabench.ledger import open_run

# Recipes ---------------------------------------------------------------------------------------


def test_all_misspelt_keys_of_a_recipe_are_listed_at_once(refused, here, write_recipe):
    bad = write_recipe(
        here / "bad.yml",
        trian={"epochs": 1},
        data={"name": "digits", "flp": True},
        prune={"epochs": 0, "lr": 0.1, "densty": 0.1},
    )
    line = refused("bad.yml: ", "train", "--config", bad, "--out", "run")
    for part in (
        "trian: unknown key, did you mean 'train'?",
        "data.flp: unknown key, did you mean 'flip'?",
        "prune.densty: unknown key, did you mean 'density'?",
        "prune.epochs: input should be greater than 0 (got 0)",
    ):
        assert part in line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", r"train\.epoch: unknown key, did you mean 'epochs'\?"),
        ("train.epochs", r"--set 'train\.epochs': write KEY=VALUE, for example --set train\.epochs=3"),
        ("train.epochs=many", r"train\.epochs: input should be a valid integer.*'many'"),
        ("train.epochs.first=3", r"--set 'train\.epochs\.first=3': 'epochs' is a value, not a section"),
        ("model.arch=resnet", r"unknown architecture 'resnet'; .*choose one of: .*cifar_model_bn"),
        (
            "data.name=stl10",
            r"unknown data set 'stl10'; .*: cifar10, cifar100, digits, fashionmnist, imagenet, mnist",
        ),
        ("train.epsilon_ramp_epochs=9", r"epsilon_ramp_epochs 9 exceeds epochs 2"),
        ("objective={name: trades, epsilon: 8}", r"epsilon: '8' lies outside \[0, 1\].* write 8/255"),
        ("objective={name: trades}", r"objective\.epsilon: is required"),
        ("objective={name: crown}", r"objective\.name: unknown 'crown'; did you mean 'crown-ibp'"),
    ],
)
def test_a_bad_override_is_named(refused, recipe, override, message):
    refused(message, "train", "--config", recipe, "--set", override, "--out", "run")


def test_a_recipe_that_is_missing_or_not_yaml_is_refused(refused, here):
    refused(r"no recipe 'digits-tradez'; give a YAML file, or a name of", "train", "--config", "digits-tradez")
    (here / "bad.yml").write_text("name: [tiny")
    refused(r"bad\.yml is not YAML: ", "train", "--config", "bad.yml")
    (here / "bad.yml").write_text("- tiny")
    refused(r"bad\.yml does not hold a recipe: expected keys and values, found list", "train", "--config", "bad.yml")


@pytest.mark.parametrize(
    ("density", "shown", "advice"),
    [
        ("0", "0", "0.01"),
        ("1.5", "1.5", "0.985"),
        ("99", "99", "0.01"),
        ("-0.1", "-0.1", "0.01"),
        ("nan", "nan", "0.01"),
    ],
)
def test_a_density_outside_its_range_is_explained(refused, recipe, dense, density, shown, advice):
    line = (
        rf"prune\.density: is the fraction of weights kept, in \(0, 1\], got {re.escape(shown)}; "
        rf"to prune .*% of the weights write `density: {advice}`"
    )
    refused(line, "prune", "--config", recipe, "--ckpt", dense, "--density", density, "--out", "run")
    line = line.replace("prune", "finetune", 1)
    refused(line, "finetune", "--config", recipe, "--ckpt", dense, "--lwm", "--density", density, "--out", "run")


@pytest.mark.parametrize("written", ["'99'", "1e2", "99.0"])
def test_a_density_is_checked_however_it_is_written(refused, recipe, written):
    """YAML reads 1e2 (without a point) as a word."""
    refused(r"densities\.0: is the fraction of weights kept", "pipeline", "--config", recipe, "--out", "run", "--set",
            f"pipeline.densities=[{written}]")  # fmt: skip


def test_phases_without_their_section_or_their_mask_are_refused(refused, here, write_recipe, recipe, dense):
    bare = write_recipe(here / "bare.yml", prune=None, finetune=None)
    ckpt = ("--ckpt", dense, "--out", "run")
    refused(r"recipe tiny has no `prune:` section; add one with epochs and lr", "prune", "--config", bare, *ckpt)
    refused(r"recipe tiny has no `finetune:` section", "finetune", "--config", bare, *ckpt)
    refused(r"prune\.epochs: is required; prune\.lr: is required", "prune", "--config", bare, *ckpt, "--density", 0.1)
    refused(r"no density given: add --density 0\.1", "prune", "--config", recipe, *ckpt)
    refused(r"not pruned; run `hydrabench prune` first, or add --lwm", "finetune", "--config", recipe, *ckpt)
    refused(r"--lwm needs --density", "finetune", "--config", recipe, *ckpt, "--lwm")
    refused(r"keeps 1\.0 of its weights; --density belongs to --lwm", "finetune", "--config", recipe, *ckpt,
            "--density", 0.1)  # fmt: skip
    refused(r"needs a `prune:` section for its pipeline", "pipeline", "--config", bare, "--out", "run")


def test_data_that_are_not_there_come_with_how_to_get_them(refused, here, write_recipe):
    recipe = write_recipe(here / "cifar.yml", data={"name": "cifar10"})
    (here / "empty").mkdir()
    how = r"no CIFAR-10 in .*empty.*: neither t\w+-\*\.parquet .*--data-dir or HYDRABENCH_DATA, or add --download"
    for command in ("train", "pipeline"):
        refused(how, command, "--config", recipe, "--data-dir", "empty", "--out", "run")
        refused("data folder 'nowhere' does not exist; correct --data-dir or HYDRABENCH_DATA", command, "--config",
                recipe, "--data-dir", "nowhere", "--out", "run")  # fmt: skip
    refused(r"no CIFAR-10 in 'data': ", "train", "--config", recipe, "--out", "run")


# Checkpoints -----------------------------------------------------------------------------------


def test_a_checkpoint_that_is_missing_is_refused(refused, here, recipe):
    (here / "empty").mkdir()
    for ref, message in (
        ("no.safetensors", r"no checkpoint at no\.safetensors"),
        ("./no", r"no checkpoint at \./no"),
        ("empty", r"the folder empty holds no checkpoint\.safetensors; has its run finished\?"),
    ):
        refused(message, "attack", "--ckpt", ref, "--out", "run")
        refused(message, "certify", "--ckpt", ref, "--out", "run")
        refused(message, "prune", "--config", recipe, "--density", 0.1, "--ckpt", ref, "--out", "run")
        refused(message, "zoo", "export", ref, "--format", "dense", "--out", "run.safetensors")


def truncate(path):
    path.write_bytes(path.read_bytes()[:5000])


def replace_by_text(path):
    path.write_text("weights")


def replace_by_pickle(path):
    torch.save({"weight": torch.zeros(2)}, path)


def drop_header(path):
    save_file({"weight": torch.zeros(2)}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"dense\.safetensors is not a whole safetensors file .*; fetch or write it again"),
        (replace_by_text, r"dense\.safetensors is not a whole safetensors file"),
        (replace_by_pickle, r"dense\.safetensors (names no architecture; give it, .* --arch|does not fit the archit)"),
        (drop_header, r"is a safetensors file without a hydrabench header; it names no architecture"),
    ],
)
def test_a_file_that_is_not_a_whole_checkpoint_is_refused(refused, recipe, dense, damage, message):
    damage(dense)
    refused(message, "attack", "--ckpt", dense, "--epsilon", "8/255", "--out", "run")
    refused(message, "certify", "--ckpt", dense, "--epsilon", "8/255", "--out", "run")
    refused(message, "finetune", "--config", recipe, "--lwm", "--density", 0.1, "--ckpt", dense, "--out", "run")


def spoil(state):
    state["2.weight"][3, 1, 0, 0] = torch.nan


def misshape(state):
    state["2.weight"] = torch.zeros(32, 16, 3, 3)
    state["9.weight"] = state.pop("7.weight")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (spoil, r"holds values that are not finite \(NaN or infinity\) in 2\.weight"),
        (
            misshape,
            r"does not fit the architecture it names: missing 7\.weight; unexpected 9\.weight; 2\.weight has shape",
        ),
    ],
)
def test_weights_that_cannot_be_used_are_named(refused, here, recipe, write_checkpoint, edit, message):
    bad = write_checkpoint(here / "bad.safetensors", edit=edit)
    for command in (("attack",), ("certify",), ("prune", "--config", recipe, "--density", 0.1)):
        refused(message, *command, "--ckpt", bad, "--out", "run")


def test_a_checkpoint_of_another_architecture_or_data_set_than_the_recipe_is_refused(
    refused, here, recipe, write_checkpoint
):
    other = write_checkpoint(here / "bn.safetensors", arch="cifar_model_bn")
    cifar = write_checkpoint(here / "cifar.safetensors", dataset="cifar10")
    for command in (("prune", "--density", 0.1), ("finetune", "--lwm", "--density", 0.1)):
        refused(r"bn\.safetensors is a cifar_model_bn for digits; recipe tiny wants a cifar_model for digits", *command,
                "--config", recipe, "--ckpt", other, "--out", "run")  # fmt: skip
        refused(r"is a cifar_model for cifar10; recipe tiny wants a cifar_model for digits", *command, "--config",
                recipe, "--ckpt", cifar, "--out", "run")  # fmt: skip


# Folders ---------------------------------------------------------------------------------------


def test_an_output_folder_that_holds_another_run_or_other_files_is_refused(refused, here, recipe, dense):
    open_run(here / "used", {"command": "train"}, resume=False)
    (here / "mine").mkdir()
    (here / "mine" / "notes.txt").write_text("mine")
    commands = (
        ("train", "--config", recipe),
        ("prune", "--config", recipe, "--ckpt", dense, "--density", 0.1),
        ("finetune", "--config", recipe, "--ckpt", dense, "--lwm", "--density", 0.1),
        ("attack", "--ckpt", dense),
        ("certify", "--ckpt", dense),
    )
    for command in commands:
        refused("used already holds a run; continue it with --resume or choose a new --out", *command, "--out", "used")
        refused("mine is no run folder but holds notes.txt; choose a new --out", *command, "--out", "mine")
        refused("mine is no run folder but holds notes.txt", *command, "--out", "mine", "--resume")
    for out in ("used", "mine"):
        refused(f"{out} already holds files; continue with --resume or choose a new --out", "pipeline", "--config",
                recipe, "--out", out)  # fmt: skip


def test_resuming_with_another_recipe_or_setting_names_what_changed(refused, hydrabench, recipe, dense):
    train = ("train", "--config", recipe, "--out", "trained", "--set", "train.epochs=1")
    assert hydrabench(*train).exit_code == 0
    refused(r"cannot resume trained: recipe\.train\.lr was 0\.01 and is now 0\.1; keep the values", *train, "--resume",
            "--set", "train.lr=0.1")  # fmt: skip
    attack = ("attack", "--ckpt", dense, "--attack", "clean", "--out", "attacked")
    assert hydrabench(*attack, "-n", 5).exit_code == 0
    refused(r"cannot resume attacked: dataset\.n was 5 and is now 4; keep the values", *attack, "-n", 4, "--resume")


def test_a_report_of_nothing_or_of_half_a_run_is_refused(refused, hydrabench, here, dense):
    (here / "empty").mkdir()
    refused(r"empty is not a run folder and holds none", "report", "empty", "--out", "report")
    refused(r"nowhere does not exist; give run folders", "report", "nowhere", "--out", "report")
    assert hydrabench("attack", "--ckpt", dense, "--attack", "clean", "-n", 3, "--out", "runs/clean").exit_code == 0
    refused(r"unknown report format 'pdf'", "report", "runs", "--out", "report", "--format", "pdf")
    refused(
        r"runs/clean is a run folder, whose summary a report would replace", "report", "runs", "--out", "runs/clean"
    )
    shutil.copytree(here / "runs" / "clean", here / "half" / "clean")
    records = here / "half" / "clean" / "records.jsonl"
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:2]))
    refused(
        r"half/clean/records\.jsonl has SHA-256 .*, its summary\.json says .* one was altered",
        "report",
        "half",
        "--out",
        "report",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("trian",),
        ("train",),
        ("train", "--config", "recipe.yml", "--epochs", "3"),
        ("prune", "--config", "recipe.yml"),
        ("prune", "--config", "recipe.yml", "--ckpt", "dense.safetensors", "--density", "tenth"),
        ("attack", "--ckpt", "dense.safetensors", "-n", "few"),
        ("attack", "--ckpt", "dense.safetensors", "--out", "recipe.yml"),
        ("attack",),
        ("report",),
        ("zoo", "export", "dense.safetensors", "--format", "tflite", "--out", "x"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_clicks_own_exit_code_2(hydrabench, listing, recipe, dense, arguments):
    before = listing()
    result = hydrabench(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: " in result.stderr
    assert "Traceback" not in result.stderr
    assert listing() == before


def test_an_error_of_one_process_alone_is_printed_when_the_main_one_has_had_its_say(hydrabench, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    waited: list[float] = []
    monkeypatch.setattr(common.time, "sleep", waited.append)
    result = hydrabench("train", "--config", "nowhere")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error in process 1: no recipe 'nowhere'; give a YAML file")
    assert waited == [common.GRACE_SECONDS]
