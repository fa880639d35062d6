"""Gradients do not depend on how a batch is cut, nor on memory running out; fast arithmetic leaves bounds exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from hydrabench.bounds import class_margins
from hydrabench.errors import MemoryShortageError
from hydrabench.masking import attach_masks, set_phase
from hydrabench.models import build_model
from hydrabench.objectives import OBJECTIVES, Objective, StepLoss, TrainingStep
from hydrabench.runtime import World, stream
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.training import forward_pass as computation
from hydrabench.workflows.training.forward_pass import ForwardPass
from hydrabench.workflows.training.gradients import Gradients

CPU = torch.device("cpu")
# What objectives need beyond their defaults.
NEEDED = {
    "epsilon": "1/255",
    "sigma": 0.25,
    "samples": 2,
    "steps": 2,
    "box": 0.5,
    "ibp_weight": 0.5,
    "regularization": 0,
}
IMAGES = 7


def settings_of(name: str):
    model = OBJECTIVES[name].settings
    fields = model.model_fields
    return model(name=name, **{key: value for key, value in NEEDED.items() if key in fields})


def problem(arch: str = "cifar_model", *, pruned: bool = False) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    network = build_model(arch, (1, 8, 8), 10, generator=stream("weights"))
    if pruned:
        attach_masks(network, 0.3)
    set_phase(network, "prune" if pruned else "train")
    return network, torch.rand(IMAGES, 1, 8, 8, generator=stream("images")), torch.arange(IMAGES) % 10


def compute(network, x, y, *, objective="natural", **options):
    """Gradients by the name of the parameter, the outcome, and what was left for the next step."""
    settings = settings_of(objective)
    gradients = Gradients(network, settings, options=RunOptions("cpu", **options), device=CPU, world=World())
    memory: dict[str, torch.Tensor] = {}
    epsilon = float(getattr(settings, "epsilon", 0))

    def step_of(rows: slice | None, whole: int | None) -> TrainingStep:
        return TrainingStep(epsilon, 1.0, stream("step"), rows, whole, memory)

    outcome = gradients.compute(x, y, step_of)
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return found, outcome, gradients


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("pruned", [False, True], ids=["train", "prune"])
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_give_the_gradients_of_the_whole_batch(objective, pruned, micro_batch):
    network, x, y = problem(pruned=pruned)
    whole, first, _ = compute(network, x, y, objective=objective)
    parts, second, _ = compute(network, x, y, objective=objective, micro_batch=micro_batch)
    assert set(whole) == set(parts) == {name for name, p in network.named_parameters() if p.requires_grad}
    assert any(gradient.abs().max() > 1e-4 for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=2e-5)
    assert second.loss == pytest.approx(first.loss, rel=1e-5)
    assert second.correct == first.correct


def test_a_micro_batch_as_large_as_the_batch_changes_no_bit():
    network, x, y = problem("cifar_model_bn")
    whole, *_ = compute(network, x, y, objective="trades")
    network, x, y = problem("cifar_model_bn")
    same, *_ = compute(network, x, y, objective="trades", micro_batch=IMAGES)
    assert all(torch.equal(whole[name], gradient) for name, gradient in same.items())


def forgetful(limit: int, error: Callable[[], Exception], seen: list[int]) -> Objective:
    """TRADES on a machine whose memory holds `limit` images; it runs out after the first forward pass."""
    original = OBJECTIVES["trades"]

    def loss(network, x, y, settings, step):
        seen.append(len(x))
        losses = original.loss(network, x, y, settings, step)
        if len(x) > limit:
            network.eval()
            raise error()
        return losses

    return replace(original, loss=loss)


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory."),
        lambda: RuntimeError("[enforce fail] can't allocate memory"),
    ],
)
def test_when_memory_runs_out_the_step_is_done_again_in_halves(monkeypatch, capsys, error):
    """7 images do not fit, nor do 3 at once; 1 at once does. Batch norm's statistics are as if it had never failed."""
    seen: list[int] = []
    network, x, y = problem("cifar_model_bn")
    expected, outcome, _ = compute(network, x, y, objective="trades", micro_batch=1)
    statistics = {key: value.clone() for key, value in network.state_dict().items()}
    monkeypatch.setitem(OBJECTIVES, "trades", forgetful(2, error, seen))
    network, x, y = problem("cifar_model_bn")
    found, again, gradients = compute(network, x, y, objective="trades")
    assert seen == [7, 2, 2, 3, *[1] * 7]
    assert gradients.micro_batch == 1
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert all(torch.equal(statistics[key], value) for key, value in network.state_dict().items())
    assert (again.loss, again.correct) == (outcome.loss, outcome.correct)
    line = "out of memory: going on with micro-batches of {} images; batches stay as large as they are\n"
    assert capsys.readouterr().err == line.format(3) + line.format(1)


def test_a_single_image_that_does_not_fit_ends_in_one_line(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "trades", forgetful(0, lambda: torch.OutOfMemoryError("no"), []))
    network, x, y = problem()
    with pytest.raises(MemoryShortageError, match=r"^out of memory on cpu with one image at a time; choose a device"):
        compute(network, x, y, objective="trades")


def test_other_errors_are_not_taken_for_a_shortage(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "trades", forgetful(0, lambda: RuntimeError("shapes differ"), []))
    network, x, y = problem()
    with pytest.raises(RuntimeError, match="shapes differ"):
        compute(network, x, y, objective="trades")


def test_what_an_objective_wants_called_sees_its_gradients_and_waits_for_the_whole_batch(monkeypatch):
    """Each of the rows has its gradient, that of the mean over all 7 images, when the first `after` is called."""
    leaves: list[torch.Tensor] = []

    def loss(network, x, y, settings, step):
        leaf = x.clone().requires_grad_()
        leaves.append(leaf)
        logits = network(leaf)
        return StepLoss(nn.functional.cross_entropy(logits, y), logits, after=lambda: leaf.grad.abs_())  # noqa: PLW0108 - the gradient is not there yet

    original = OBJECTIVES["natural"]
    network, x, y = problem()
    whole = x.clone().requires_grad_()
    nn.functional.cross_entropy(network(whole), y).backward()
    monkeypatch.setitem(OBJECTIVES, "natural", replace(original, loss=loss))
    _, outcome, _ = compute(network, x, y, micro_batch=3)
    assert [len(leaf) for leaf in leaves] == [2, 2, 3]
    torch.testing.assert_close(torch.cat([leaf.grad for leaf in leaves]), whole.grad, rtol=1e-4, atol=1e-8)
    assert len(outcome.afters) == 3
    for after in outcome.afters:
        after()
    assert all((leaf.grad >= 0).all() for leaf in leaves)


def written_out(network, batches):
    """Mean and variance that the first two batch norms see, averaged over batches; all layers before them by hand."""
    found = []
    for x in batches:
        value, seen = x, []
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                axes = (0, 2, 3)
                mean, var = value.mean(axes), value.var(axes, unbiased=True)
                seen += [mean, var]
                plain = value.var(axes, unbiased=False)
                shape = (1, -1, 1, 1)
                value = (value - mean.view(shape)) / (plain.view(shape) + layer.eps).sqrt()
                value = value * layer.weight.view(shape) + layer.bias.view(shape)
            elif isinstance(layer, nn.Conv2d | nn.ReLU):
                value = layer(value)
            if len(seen) == 4:
                break
        found.append(seen)
    return [torch.stack(parts).mean(0) for parts in zip(*found, strict=True)]


def momentum_stays(monkeypatch):
    monkeypatch.setattr(nn.BatchNorm2d, "momentum", property(lambda _norm: 0.1, lambda *_: None), raising=False)


def statistics_stay(monkeypatch):
    monkeypatch.setattr(nn.BatchNorm2d, "reset_running_stats", lambda _norm: None)


@pytest.mark.parametrize("planted", [None, momentum_stays, statistics_stay])
@pytest.mark.parametrize("micro_batch", [None, 5])
def test_population_statistics_are_the_plain_average_over_batches(monkeypatch, planted, micro_batch):
    network, x, y = problem("cifar_model_bn")
    gradients = Gradients(
        network, settings_of("natural"), options=RunOptions("cpu", micro_batch=micro_batch), device=CPU, world=World()
    )
    network.train()
    network(x)  # leaves other statistics behind
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    if planted:
        planted(monkeypatch)
    batches = [x, 0.5 * x]
    gradients.take_population_statistics((part, y) for part in batches)
    pieces = [piece for part in batches for piece in ((part[:3], part[3:]) if micro_batch else (part,))]
    with torch.no_grad():
        expected = written_out(network, pieces)
    found = [buffer for norm in norms[:2] for buffer in (norm.running_mean, norm.running_var)]
    same = [torch.allclose(one, other, rtol=1e-4, atol=1e-6) for one, other in zip(found, expected, strict=True)]
    assert all(same) == (planted is None)
    assert [norm.momentum for norm in norms] == momenta


def test_running_statistics_are_averaged_over_the_processes(monkeypatch):
    """The other process has statistics that are larger by 2: the average is larger by 1. Counters stay."""
    network, *_ = problem("cifar_model_bn")
    world = World()
    gradients = Gradients(network, settings_of("natural"), options=RunOptions("cpu"), device=CPU, world=world)
    before = [buffer.clone() for buffer in gradients.statistics]
    assert len(before) == 6
    monkeypatch.setattr(world, "size", 2)
    monkeypatch.setattr(world, "add_up", lambda tensor: tensor.add_(tensor + 2))
    gradients._share_statistics()
    for buffer, old in zip(gradients.statistics, before, strict=True):
        assert torch.equal(buffer, old + 1 if buffer.is_floating_point() else old)


# Precision, compilation ------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["cifar_model_bn", "vgg4_without_maxpool"])  # read by walking, and by tracing
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_touches_what_calls_the_network_and_no_bound(precision, arch):
    network = build_model(arch, (3, 32, 32), 10, generator=stream("weights")).eval()
    x, y = torch.rand(2, 3, 32, 32, generator=stream("images")), torch.tensor([0, 1])
    exact, margins = network(x), class_margins(network, x, y, 1 / 255, beta=0.5)
    with ForwardPass(network, RunOptions(precision=precision), CPU, talks=True).in_use():
        reduced = network(x)
        assert torch.equal(class_margins(network, x, y, 1 / 255, beta=0.5), margins)
    assert reduced.dtype == torch.float32
    assert 0 < (reduced - exact).abs().max() < 0.1
    assert torch.equal(network(x), exact)


@pytest.mark.parametrize(("precision", "scale"), [("bfloat16", 1.0), ("float16", 2.0**16)])
def test_gradients_of_reduced_precision_are_close_once_unscaled(precision, scale):
    network, x, y = problem()
    exact, *_ = compute(network, x, y)
    reduced, _, gradients = compute(network, x, y, precision=precision)
    assert gradients.scaler.get_scale() == scale
    for name, gradient in exact.items():
        assert 0 < (reduced[name] / scale - gradient).abs().max() < 0.05 * gradient.abs().max() + 1e-3


def test_a_network_that_does_not_compile_is_computed_without_and_said_so_once(monkeypatch, capsys):
    from torch._dynamo.exc import Unsupported

    def broken(forward):
        def fail(x):
            raise Unsupported("no compiler\nhere")

        return fail

    monkeypatch.setattr(computation.torch, "compile", broken)
    network, x, y = problem()
    plain, *_ = compute(network, x, y, objective="trades")
    fallen, *_ = compute(network, x, y, objective="trades", compile=True)
    assert all(torch.equal(plain[name], gradient) for name, gradient in fallen.items())
    first, second = capsys.readouterr().err.splitlines()
    assert first == computation.COMPILING
    assert second == "--compile: going on without, because torch.compile failed: Unsupported: no compiler here"
    assert network._compiled_call_impl is None


def test_memory_that_runs_out_in_compiled_code_is_no_reason_to_do_without_it(monkeypatch, capsys):
    calls = []

    def compiled(forward):
        def run(x):
            calls.append(len(x))
            if len(x) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return forward(x)

        return run

    monkeypatch.setattr(computation.torch, "compile", compiled)
    network, x, y = problem()
    compute(network, x, y, compile=True)
    assert calls == [7, 2, 2, 3]
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "--compile" in line] == [computation.COMPILING]
    assert said[0] == computation.COMPILING, "before the first call, which takes so long"


@pytest.mark.slow
def test_compiled_gradients_agree_under_masks_too():
    for pruned in (False, True):
        network, x, y = problem("cifar_model_bn", pruned=pruned)
        plain, *_ = compute(network, x, y, objective="trades")
        network, x, y = problem("cifar_model_bn", pruned=pruned)
        compiled, _, gradients = compute(network, x, y, objective="trades", compile=True)
        assert gradients.computation.compiled is not None
        for name, gradient in plain.items():
            torch.testing.assert_close(compiled[name], gradient, rtol=1e-3, atol=1e-5)
