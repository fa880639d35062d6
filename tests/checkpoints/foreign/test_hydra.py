"""Files of the original HYDRA code as sources of checkpoints: what is read, and what it becomes."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrabench.checkpoints import (
    EXPORTS,
    Checkpoint,
    export_checkpoint,
    load_checkpoint,
    open_ref,
    state_of,
    zoo,
)
from hydrabench.checkpoints.foreign.kept import settled
from hydrabench.cli import main
from hydrabench.cli.zoo import zoo_export
from hydrabench.errors import CheckpointError, ConfigError
from hydrabench.masking import layer_densities, score_masks
from hydrabench.workflows.evaluation.loading import open_subject
from hydrabench.workflows.run_options import RunOptions
from tests.helpers.originals import (
    SMALL_ARCHS,
    dense_state,
    imported,
    keys_of,
    masked_state,
    original_mask,
    same,
    tensors,
    unused,
    write,
)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("arch", SMALL_ARCHS)
def test_a_masked_file_keeps_exactly_what_the_original_would(tmp_path, arch, prefix):
    state = masked_state(arch)
    path = write(tmp_path / "model_best.pth.tar", state, arch, prefix=prefix)
    checkpoint = imported(path, density=0.1)
    header = checkpoint.header
    assert (header.layout, header.phase, header.arch, header.density) == ("masked", "imported", arch, 0.1)
    assert (header.dataset, header.shape, header.num_classes) == ("cifar10", (3, 32, 32), 10)
    assert not checkpoint.network.training
    found = tensors(checkpoint)
    expected = {
        key.replace("popup_scores", "scores"): tensor
        for key, tensor in state.items()
        if not (unused(key) and key.endswith("popup_scores"))
    }
    assert same({key: found[key] for key in expected}, expected)
    assert found.keys() == expected.keys()
    effective = tensors(Checkpoint(path, "", header, checkpoint.baked()))
    for name in keys_of(arch).prunable:
        weight = state[f"{name}.weight"]
        mask = torch.ones_like(weight) if unused(name) else original_mask(state[f"{name}.popup_scores"], 0.1)
        assert torch.equal(effective[f"{name}.weight"], weight * mask)


@pytest.mark.parametrize(
    ("arch", "k", "new_format"),
    [
        ("vgg2_bn", 1.0, True),
        ("vgg2_bn", 0.9, True),
        ("vgg2_bn", 0.1, False),
        ("wrn_28_1", 0.9, False),
        ("wrn_28_1", 0.01, True),
        ("cifar_model", 0.05, False),
        ("cifar_model", 0.8, True),
    ],
)
def test_a_dense_file_tells_its_density_by_its_zeros(tmp_path, arch, k, new_format):
    state = dense_state(arch, k)
    checkpoint = imported(write(tmp_path / "d.pth.tar", state, arch, new_format=new_format))
    assert checkpoint.header.layout == "dense"
    assert checkpoint.header.density == pytest.approx(k, rel=1e-15)
    assert same(tensors(checkpoint), state)
    assert same(tensors(imported(checkpoint.path, density=k)), state)


def test_where_the_original_keeps_one_more_so_do_we_and_a_saved_copy(tmp_path):
    """classifier.4 has 2560 weights: at 0.9 the original prunes int(255.99999999999994), not 256."""
    state = masked_state("vgg2_bn")
    masked = imported(write(tmp_path / "m.pth.tar", state, "vgg2_bn"), density=0.9)
    assert (masked.header.density, masked.header.kept["classifier.4"]) == (0.9, 2560 - 255)
    assert score_masks(masked.network)["classifier.4"].kept == 2560 - 255
    export_checkpoint(masked, tmp_path / "masked", "masked")
    again = load_checkpoint(tmp_path / "masked")
    expected = dense_state("vgg2_bn", 0.9)
    assert same(tensors(Checkpoint(again.path, "", again.header, again.baked())), expected)
    dense = imported(write(tmp_path / "d.pth.tar", expected, "vgg2_bn"))
    export_checkpoint(dense, tmp_path / "dense", "dense")
    assert same(tensors(load_checkpoint(tmp_path / "dense")), expected)


def test_a_density_that_rounds_differently_from_layer_to_layer_is_told_layer_by_layer(tmp_path):
    """At 0.07 the original keeps 71 of 1000 weights, but in no other layer of cifar_model one too many."""
    masked = imported(write(tmp_path / "m.pth.tar", masked_state("cifar_model"), "cifar_model"), density=0.07)
    assert masked.header.kept == {"0": 54, "2": 574, "5": 14336, "7": 71}
    export_checkpoint(masked, tmp_path / "masked", "masked")
    assert same(tensors(load_checkpoint(tmp_path / "masked")), tensors(masked))
    state = dense_state("cifar_model", 0.07)
    dense = imported(write(tmp_path / "d.pth.tar", state, "cifar_model"), density=0.07)
    export_checkpoint(dense, tmp_path / "dense", "dense")
    assert same(tensors(load_checkpoint(tmp_path / "dense")), state)


def test_of_equal_scores_at_the_boundary_the_later_ones_are_kept(tmp_path):
    """Layer 7 of cifar_model has 1000 scores. All are 1 or -1; at 0.1 a stable sort prunes the first 900."""
    state = masked_state("cifar_model")
    state["7.popup_scores"] = torch.ones(10, 100)
    state["7.popup_scores"][:, ::2] = -1
    state["5.popup_scores"] = torch.zeros(100, 2048)
    checkpoint = imported(write(tmp_path / "m.pth.tar", state, "cifar_model"), density=0.1)
    export_checkpoint(checkpoint, tmp_path / "copy", "masked")
    for again in (checkpoint, load_checkpoint(tmp_path / "copy")):
        masks = score_masks(again.network)
        assert masks["7"].mask.tolist() == [[0.0] * 100] * 9 + [[1.0] * 100]
        assert masks["5"].mask[90:].all()
        assert not masks["5"].mask[:90].any()
        scores = masks["7"].scores.detach()
        assert torch.equal(scores[:9], state["7.popup_scores"][:9])
        one_more = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
        assert torch.equal(scores[9], state["7.popup_scores"][9] * one_more)


@settings(max_examples=40)
@given(values=st.lists(st.integers(-3, 3), min_size=2, max_size=30), data=st.data())
def test_settled_scores_select_their_mask_whoever_sorts(values, data):
    scores = torch.tensor(values, dtype=torch.float32)
    kept = data.draw(st.integers(0, len(values)))
    mask = original_mask(scores, 1.0)
    mask[torch.sort(scores.abs(), stable=True).indices[: len(values) - kept]] = 0
    result = settled(scores, mask).abs()
    inside, outside = result[mask.bool()], result[~mask.bool()]
    assert len(inside) == kept
    if len(inside) and len(outside):
        assert inside.min() > outside.max()
    assert torch.allclose(result, scores.abs(), rtol=1e-6)


@pytest.mark.parametrize(("masked", "dense"), [("a.pth.tar", "a_dense.pth.tar"), ("a.pt", "a_dense.pt")])
def test_a_masked_file_takes_its_density_from_its_dense_twin(tmp_path, masked, dense):
    write(tmp_path / masked, masked_state("vgg2_bn"), "vgg2_bn")
    write(tmp_path / dense, dense_state("vgg2_bn", 0.05), "vgg2_bn", prefix="module.")
    checkpoint = imported(tmp_path / masked)
    assert (checkpoint.header.layout, checkpoint.header.density) == ("masked", 0.05)
    twin = imported(tmp_path / dense)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(checkpoint.network(x), twin.network(x))


def test_a_masked_file_alone_does_not_say_what_it_keeps(tmp_path):
    path = write(tmp_path / "model_best.pth.tar", masked_state("vgg2_bn"), "vgg2_bn")
    with pytest.raises(
        CheckpointError, match=r"give --source-density .* or put model_best_dense\.pth\.tar beside it"
    ) as e:
        imported(path)
    assert "\n" not in str(e.value)
    write(tmp_path / "model_best_dense.pth.tar", masked_state("vgg2_bn"), "vgg2_bn")
    with pytest.raises(CheckpointError, match=r"model_best_dense\.pth\.tar is masked, too"):
        imported(path)


@pytest.mark.parametrize("bare", [False, True])
def test_robustbenchs_layout_names_no_architecture(tmp_path, bare):
    state = dense_state("wrn_28_1", 0.1)
    path = tmp_path / "cifar10_wrn28.pt"
    torch.save(state if bare else {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}, path)
    with pytest.raises(CheckpointError, match="names no architecture; give it, for example --arch wrn_28_10"):
        imported(path)
    with pytest.raises(CheckpointError, match=r"does not say how its network normalises images; give --normalization"):
        imported(path, arch="wrn_28_1")
    assert same(tensors(imported(path, arch="wrn_28_1", normalization="none")), state)


@pytest.mark.parametrize("change", ["zeroed", "filled"])
def test_what_the_unused_block_holds_does_not_disturb_the_inference(tmp_path, change):
    state = dense_state("wrn_28_1", 0.01)
    for key in filter(unused, list(state)):
        state[key] = torch.zeros_like(state[key]) if change == "zeroed" else torch.ones_like(state[key])
    checkpoint = imported(write(tmp_path / "d.pth.tar", state, "wrn_28_1"))
    assert checkpoint.header.density == 0.01
    assert same(tensors(checkpoint), state)
    assert not any(unused(layer.name) for layer in layer_densities(checkpoint.network))


def test_a_reference_may_be_a_file_of_the_original_under_any_name(tmp_path):
    path = write(tmp_path / "weights", dense_state("cifar_model", 0.1), "cifar_model", new_format=False)
    assert open_ref(str(path), dataset="svhn").header.phase == "imported"
    export_checkpoint(open_ref(str(path), dataset="svhn"), tmp_path / "named.pt", "dense")
    assert open_ref(str(tmp_path / "named.pt")).header.density == 0.1  # one of ours under a name of theirs
    with pytest.raises(ConfigError, match="is a file of ours and says that itself; leave --source-density out"):
        open_ref(str(tmp_path / "named.pt"), density=0.1)


def test_an_imported_network_is_evaluated_with_an_unknown_objective_and_no_default_radius(tmp_path):
    path = write(tmp_path / "model_best_dense.pth.tar", dense_state("cifar_model", 0.1), "cifar_model")
    subject = open_subject(str(path), options=RunOptions("cpu", None, False), described={"dataset": "cifar10"})
    assert subject.describe()["objective"] == "unknown"
    assert subject.describe()["phase"] == "imported"
    assert subject.checkpoint.header.default_threat() == {}


def test_a_zoo_id_knows_what_its_file_does_not_say(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"state_dict": masked_state("wrn_28_1")}, path)
    entry = zoo.ZooEntry(
        id="hydra/x",
        url="https://example.org/x",
        dataset="svhn",
        arch="wrn_28_1",
        objective="trades",
        density=0.01,
        licence="none stated",
    )
    for room in ("zoo", "opening"):
        monkeypatch.setattr(f"hydrabench.checkpoints.{room}.read_zoo", lambda: {"hydra/x": entry})
    monkeypatch.setattr(zoo, "fetch", lambda entry, progress: path)
    header = open_ref("hydra/x").header
    assert (header.dataset, header.arch, header.density) == ("svhn", "wrn_28_1", 0.01)


def run(*arguments: object):
    return CliRunner().invoke(main, ["zoo", "export", *map(str, arguments)])


@pytest.mark.parametrize("layout", sorted(EXPORTS.keys() - {"onnx"}))  # which only other programs read: test_onnx.py
def test_export_converts_a_masked_file_to_every_format_that_is_read_again(tmp_path, layout):
    path = write(tmp_path / "model_best.pth.tar", masked_state("vgg2_bn"), None)
    out = tmp_path / "new" / "file"
    described = ["--arch", "vgg2_bn", "--dataset", "svhn", "--source-density", 0.1, "--normalization", "none"]
    result = run(path, "--format", layout, "--out", out, *described)
    assert result.exit_code == 0, result.output
    again = open_ref(str(out))
    assert (again.header.density, again.header.dataset) == (0.1, "svhn")
    expected = dense_state("vgg2_bn", 0.1)
    found = state_of(again.baked())
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


def test_export_offers_every_format_and_says_in_one_line_what_is_missing(tmp_path):
    path = write(tmp_path / "model_best.pth.tar", masked_state("vgg2_bn"), "vgg2_bn")
    (choice,) = (option for option in zoo_export.params if option.name == "layout")
    assert set(choice.type.choices) == {*EXPORTS, "onnx-narrow", "hf"}
    result = run(path, "--format", "dense", "--out", tmp_path / "x", "--dataset", "svhn")
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert "give --source-density" in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "x").exists()
