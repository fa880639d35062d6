"""Any network as a subject: what identifies it, and what run.json says of it."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from hydrabench.config import Normalization
from hydrabench.data import load_images, pixels
from hydrabench.errors import CheckpointError
from hydrabench.evaluators import PgdSettings, VerifiedSettings
from hydrabench.ledger import read_run
from hydrabench.models import normalized
from hydrabench.reporting.evaluations import read_evaluation
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.external import external_subject
from hydrabench.workflows.evaluation.guards import guard


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def subject_of(module, **changes):
    given = {"name": "mine", "dataset": "digits", "shape": (1, 8, 8), "num_classes": 10, "device": "cpu"}
    return external_subject(module, **{**given, "identity": {"spec": "mine.py:net"}, **changes})


def test_tensors_and_specification_identify_a_network():
    module = network()
    known = subject_of(module).checkpoint.sha256
    assert subject_of(module).checkpoint.sha256 == known
    assert subject_of(module, identity={"spec": "other.py:net"}).checkpoint.sha256 != known
    behind = subject_of(normalized(module, (0.5,), (0.25,))).checkpoint
    assert behind.sha256 != known
    assert behind.header.normalization == Normalization(mean=(0.5,), std=(0.25,))
    with torch.no_grad():
        module[1].running_mean[2] += 1e-7
    assert subject_of(module).checkpoint.sha256 != known


def test_the_module_that_was_given_stays_as_it_is():
    module = network().train()
    subject = subject_of(module, precision="float64")
    assert not any(part.training for part in subject.network.modules())
    assert module.training
    assert module[0].weight.requires_grad
    assert module[0].weight.dtype == torch.float32
    assert next(subject.network.parameters()).dtype == torch.float64


def test_pruning_of_torch_is_baked_in_and_the_density_measured():
    module = network()
    pairs = [(module[0], "weight"), (module[5], "weight")]
    prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=0.8)
    module(torch.rand(2, 1, 8, 8))  # leaves masked weights that deepcopy refuses
    subject = subject_of(module)
    weights = 36 + 2560
    assert subject.checkpoint.header.density == pytest.approx(1 - round(0.8 * weights) / weights, abs=1e-9)
    assert not subject.network[5]._forward_pre_hooks
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(subject.network(x), module.eval()(x))


def test_values_that_are_not_finite_and_empty_networks_are_refused():
    module = network()
    with torch.no_grad():
        module[5].bias[3] = torch.nan
    with pytest.raises(CheckpointError, match=r"mine holds values that are not finite .* in 5\.bias"):
        subject_of(module)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(CheckpointError, match=r"every weight of mine is zero; give its trained weights with --weights"):
        subject_of(module)


@pytest.mark.parametrize(
    "settings",
    [PgdSettings(epsilon="1/255", steps=2), VerifiedSettings(kind="crown-ibp", epsilon="1/255")],
    ids=["pgd", "crown-ibp"],
)
def test_runs_of_it_are_ledgers_like_any_other(settings, tmp_path, cpu):
    subject = subject_of(network())
    evaluate(subject, settings, tmp_path / "run", options=cpu, n=12)
    about = json.loads((tmp_path / "run" / "run.json").read_text())["checkpoint"]
    assert about["external"] is True
    assert (about["name"], about["arch"], about["sha256"]) == ("mine", "mine.py:net", subject.checkpoint.sha256)
    assert about["parameters"] == sum(p.numel() for p in subject.network.parameters())
    assert read_evaluation(read_run(tmp_path / "run")).checkpoint.objective == "unknown"


def test_it_can_be_judged_on_images_in_memory(tmp_path, cpu):
    images = load_images("digits", "test").subset(torch.arange(100, 120), "test")
    subject = replace(subject_of(network()), images=images)
    assert evaluate(subject, PgdSettings(epsilon="1/255", steps=1), tmp_path / "run", options=cpu)["n"] == 20


def test_a_normalisation_in_front_of_a_network_that_has_its_own_is_warned_of_unless_both_belong_there():
    own = nn.Sequential(OrderedDict(front=normalized(nn.Identity(), (0.3,), (0.4,)), rest=network())).eval()
    both, images = normalized(own, (0.25,), (0.5,)).eval(), load_images("digits", "test")

    def warnings(module, labels):
        known = replace(images, labels=labels)
        return guard(subject_of(module), known, normalization_given=True)

    def right_for(module):
        with torch.no_grad():
            return module(pixels(images.images)).argmax(1)

    (warned,) = warnings(both, right_for(both)[torch.randperm(len(images))])  # as accurate with it as without
    assert warned == (
        "warning: mine normalises images itself, with mean 0.3 and std 0.4, after --normalization did; give "
        "--normalization none if it takes pixels"
    )
    assert (right_for(both) == right_for(own)).double()[:100].mean() < 0.9
    assert warnings(both, right_for(both)) == []
    assert warnings(own, right_for(own)) == []
    assert warnings(normalized(network(), (0.25,), (0.5,)).eval(), right_for(both)) == []
