"""SmoothAdv, Consistency, MACER, SmoothMix and CAT-RS: their formulas, written out with the noise of the step."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import norm
from torch.nn import functional

from hydrabench.checkpoints import Header, load_checkpoint, save_checkpoint
from hydrabench.errors import CheckpointError, ConfigError
from hydrabench.models import build_model
from hydrabench.objectives import OBJECTIVES, TrainingStep
from hydrabench.objectives.cat_rs import divergences, worst_noise
from hydrabench.objectives.noise import climb, in_ball, noises, noisy_logits, smoothed_losses, unit_or_random
from hydrabench.runtime import stream

SIGMA = 0.25


@pytest.fixture
def problem():
    network = build_model("cifar_model", (1, 8, 8), 10, generator=torch.Generator().manual_seed(0)).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(6, 1, 8, 8, generator=generator).double()
    return network, x, network(x).argmax(1)


def step(epsilon=0.5, epoch=20):
    return TrainingStep(epsilon, 1.0, stream("smoothing"), epoch=epoch)


def total(problem, name, given=None, **keys):
    settings = OBJECTIVES[name].settings.model_validate({"name": name, "sigma": SIGMA, **keys})
    return OBJECTIVES[name].loss(*problem, settings, given or step()).total.item()


def copies(problem, count):
    """Return the noise that a step draws first, and the softmax of the noisy copies, (copies, B, K)."""
    network, x, _ = problem
    noise = noises(x, step(), copies=count, sigma=SIGMA)
    return noise, torch.stack([network(x + one).softmax(1) for one in noise])


def test_the_loss_of_the_average_is_the_logarithm_of_the_mean_and_not_the_mean_of_logarithms():
    """Probabilities 1/4 and 3/4 of class 0: -log(1/2)."""
    logits = torch.log(torch.tensor([[[0.25, 0.75]], [[0.75, 0.25]]]))
    assert smoothed_losses(logits, torch.tensor([0])).item() == pytest.approx(-torch.tensor(0.5).log().item())


def test_the_attack_climbs_the_loss_of_the_average_within_its_ball(problem):
    network, x, y = problem
    noise = noises(x, step(), copies=3, sigma=SIGMA)
    points = climb(network, x, y, noise, steps=4, moved=in_ball(x, 0.5, 0.25))
    assert network.training
    values = [smoothed_losses(noisy_logits(network, point, noise), y).sum().item() for point in (x, *points)]
    assert values == sorted(values)
    assert all(((point - x).flatten(1).norm(dim=1) <= 0.5).all() for point in points)
    assert all(((point >= 0) & (point <= 1)).all() for point in points)


def test_smoothadv_is_the_cross_entropy_of_noisy_adversarial_examples(problem):
    network, x, y = problem
    noise, _ = copies(problem, 2)
    point = climb(network, x, y, noise, steps=3, moved=in_ball(x, 0.5, 2 * 0.5 / 3))[-1]
    expected = torch.stack([functional.cross_entropy(network(point + one), y) for one in noise]).mean()
    found = total(problem, "smoothadv", epsilon="0.5", steps=3)
    assert found == pytest.approx(expected.item(), rel=1e-9)
    assert found > total(problem, "smoothadv", step(0.0), epsilon="0.5", steps=3)


class Flat(torch.nn.Module):
    """Logits without slope at black images: they are the square of the mean pixel."""

    def forward(self, x):
        mean = x.clamp_min(0).flatten(1).mean(1)
        return torch.stack([-(mean**2), mean**2], dim=1)


def test_smoothadv_moves_at_random_where_the_gradient_is_zero_and_follows_it_elsewhere():
    """Without noise the first image lies on a plateau, the second does not; they may come in one batch or in two."""
    x = torch.stack([torch.zeros(1, 4, 4), torch.full((1, 4, 4), 0.5)])
    y, noise = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 1, 1, 4, 4)

    def attacked(given, rows=slice(None)):
        directed = unit_or_random(given)
        moved = in_ball(x[rows], 0.4, 0.2)
        return climb(Flat(), x[rows], y[rows], noise, steps=1, moved=moved, directed=directed)[-1]

    whole = attacked(step())
    assert whole[0].abs().max() > 0.05
    assert torch.allclose(whole[1], x[1] + 0.2 / 4)
    assert torch.equal(climb(Flat(), x, y, noise, steps=1, moved=in_ball(x, 0.4, 0.2))[-1][0], x[0])
    for row in range(2):
        part = TrainingStep(0.5, 1.0, stream("smoothing"), rows=slice(row, row + 1), whole=2)
        assert torch.equal(attacked(part, slice(row, row + 1))[0], whole[row])


def test_consistency_is_its_formula(problem):
    """Equations 9 and 10 of arXiv:2006.04062: KL of the mean from each copy, and the entropy of the mean."""
    _, _, y = problem
    _, found = copies(problem, 3)
    mean = found.mean(0)
    crossed = -found[:, torch.arange(6), y].log().mean()
    apart = torch.stack([(mean * (mean / one).log()).sum(1) for one in found]).mean()
    entropy = -(mean * mean.log()).sum(1).mean()
    expected = crossed + 20 * apart + 0.5 * entropy
    assert total(problem, "consistency", consistency=20, copies=3) == pytest.approx(expected.item(), rel=1e-9)


def test_macer_is_its_formula(problem):
    """Algorithm 1 of arXiv:2001.02378; images 0 and 1 are labelled wrongly and have no radius to enlarge."""
    network, x, y = problem
    y = y.clone()
    y[:2] = (y[:2] + 1) % 10
    noise, found = copies(problem, 5)
    logits = torch.stack([network(x + one) for one in noise])
    mean = (2 * logits).softmax(2).mean(0)
    missing = 0.0
    for image in range(6):
        first, second = mean[image].topk(2).values.tolist()
        xi = norm.ppf(first) - norm.ppf(second)
        if mean[image].argmax() == y[image] and xi <= 0.4:
            missing += 0.4 - xi
    expected = (-(found.mean(0)[torch.arange(6), y] + 1e-10).log().sum() + 3 * SIGMA / 2 * missing) / 6
    assert missing > 0
    keys = {"copies": 5, "beta": 2, "gamma": 0.4, "weight": 3}
    assert total((network, x, y), "macer", **keys) == pytest.approx(expected.item(), rel=1e-9)


def test_macer_has_finite_gradients_where_a_probability_is_one(problem):
    network, x, y = problem
    settings = OBJECTIVES["macer"].settings.model_validate({"name": "macer", "sigma": SIGMA, "beta": 1e6})
    OBJECTIVES["macer"].loss(network, x, y, settings, step()).total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("one_step", [False, True])
def test_smoothmix_is_its_formula(problem, one_step):
    """Algorithm 1 of arXiv:2111.09277, in the second of ten epochs: the weight is 2/10 of 5."""
    network, x, y = problem
    given = step(epoch=1)
    noise = noises(x, given, copies=2, sigma=SIGMA)
    u = torch.rand(6, generator=given.generator).double() / 2
    visited = climb(network, x, y, noise, steps=3, moved=lambda point, slope: (point + 0.5 * slope).clamp(0, 1))
    first = in_ball(x, 0.1, 0.0)(visited[0], torch.zeros_like(x)) if one_step else x
    found = torch.stack([network(first + one).softmax(1) for one in noise])
    mean = found.mean(0)
    mixed = (1 - u.view(6, 1, 1, 1)) * first + u.view(6, 1, 1, 1) * visited[-1]
    target = (1 - u[:, None]) * mean + u[:, None] / 10
    apart = torch.stack([(target * (target / network(mixed + one).softmax(1)).log()).sum(1) for one in noise])
    right = (mean.argmax(1) == y).double()
    assert right.sum() > 0
    expected = -found[:, torch.arange(6), y].log().mean() + 5 * 0.2 * (apart * right).mean()
    keys = {"steps": 3, "one_step": one_step}
    assert total(problem, "smoothmix", step(epoch=1), **keys) == pytest.approx(expected.item(), rel=1e-7)


def written_out(problem, noise, counted, target, weight):
    """Algorithm 1 of arXiv:2212.09000, image by image, with the K of each image and its target given."""
    network, x, y = problem
    moved = worst_noise(network, x, target, noise, epsilon=0.5, steps=4)
    expected = 0.0
    for image in range(len(x)):
        one, label = x[image : image + 1], y[image : image + 1]
        losses = sorted(functional.cross_entropy(network(one + d[image]), label).item() for d in noise)
        expected += sum(losses[: counted[image]]) / len(noise)
        if counted[image] == len(noise):
            scores = [network(one + d[image]).softmax(1)[0] for d in moved]
            kept = target[image] > 0  # 0 log 0 is 0
            apart = [(target[image] * (target[image] / score).log())[kept].sum().item() for score in scores]
            expected += weight * max(apart)
    return expected / len(x)


def drawn(given, right, count):
    """Draw K of each image as the step does, after the noise: of `count` trials with the probability `right`."""
    tried = torch.rand(len(right), count, generator=given.generator)
    return [max(1, sum(trial < p for trial in row)) for row, p in zip(tried.tolist(), right.tolist(), strict=True)]


def test_cat_rs_is_its_formula(problem):
    """With the votes of the network itself; two images are labelled wrongly, so that K is 1 for them."""
    network, x, y = problem
    y = y.clone()
    y[:2] = (y[:2] + 1) % 10
    given = step()
    noise = noises(x, given, copies=3, sigma=SIGMA)
    votes = torch.stack([functional.one_hot(network(x + one).argmax(1), 10) for one in noise]).double().mean(0)
    counted = drawn(given, votes[torch.arange(6), y], 3)
    assert 1 in counted
    assert 3 in counted
    expected = written_out((network, x, y), noise, counted, votes, 0.7)
    found = total((network, x, y), "cat-rs", epsilon="0.5", copies=3, weight=0.7)
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_worst_noise_raises_the_divergence_and_still_looks_like_noise(problem):
    network, x, _ = problem
    noise, found = copies(problem, 3)
    target = found.mean(0).detach()
    moved = worst_noise(network, x, target, noise, epsilon=0.5, steps=4)
    assert network.training
    before, after = (divergences(noisy_logits(network, x, d), target) for d in (noise, moved))
    assert (after > before).all()
    torch.testing.assert_close(moved.flatten(2).mean(2), noise.flatten(2).mean(2))
    sizes = [d.flatten(2).square().mean(2).sqrt() for d in (noise, moved)]
    torch.testing.assert_close(sizes[1], sizes[0], rtol=0.05, atol=0)


def test_a_step_of_the_worst_noise_worked_by_hand():
    """One image of one pixel in two channels; the logits are the channels, and the target is class 0.

    The noise is (3, -1): mean 1, root mean square sqrt(5). The divergence falls with the first channel and rises with
    the second, as fast, so that the direction is (-1, 1) / sqrt(2). A step of 2 · 1 / 1 leads to (3, -1) + (-s, s) with
    s = sqrt(2), and projection to length 1 back to s = 1 / sqrt(2): here = (3 - s, s - 1). Its mean is 1, its root
    mean square r; the noise that is found is 1 + sqrt(5) · (here - 1) / r.
    """
    noise = torch.tensor([3.0, -1.0], dtype=torch.float64).view(1, 1, 2, 1, 1)
    x, target = torch.zeros(1, 2, 1, 1, dtype=torch.float64), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    found = worst_noise(torch.nn.Flatten(), x, target, noise, epsilon=1.0, steps=1).flatten()
    s = 0.5**0.5
    here = torch.tensor([3 - s, s - 1], dtype=torch.float64)
    r = ((3 - s) ** 2 / 2 + (s - 1) ** 2 / 2) ** 0.5
    torch.testing.assert_close(found, 1 + 5**0.5 * (here - 1) / r, rtol=1e-6, atol=0)


def saved_teacher(path, classes=10):
    """Store a network whose weights are not those of `problem`, and return it as it is stored, in float64."""
    teacher = build_model("cifar_model", (1, 8, 8), classes, generator=torch.Generator().manual_seed(7))
    facts = {"arch": "cifar_model", "dataset": "digits", "shape": (1, 8, 8), "num_classes": classes, "density": 1}
    unknown = ("normalization", "objective", "recipe", "recipe_sha256", "seed", "selection", "parent")
    header = Header(layout="dense", phase="imported", **facts, **dict.fromkeys(unknown))
    save_checkpoint(path, teacher.state_dict(), header)
    return load_checkpoint(path).baked().double().eval()


def test_a_teacher_votes_under_its_own_noise(problem, tmp_path):
    network, x, y = problem
    teacher = saved_teacher(tmp_path / "teacher.safetensors")
    given = step()
    noise = noises(x, given, copies=3, sigma=SIGMA)
    own = torch.stack([network(x + one).argmax(1) for one in noise])
    counted = drawn(given, (own == y).double().mean(0), 3)
    said = [teacher(x + 0.4 * given.normal(x)).argmax(1) for _ in range(5)]
    target = torch.stack([functional.one_hot(one, 10) for one in said]).double().mean(0)
    assert 3 in counted
    expected = written_out(problem, noise, counted, target, 1.0)
    keys = {"epsilon": "0.5", "copies": 3, "teacher": str(tmp_path / "teacher.safetensors")}
    found = total(problem, "cat-rs", votes=5, teacher_sigma=0.4, **keys)
    assert found == pytest.approx(expected, rel=1e-9)
    assert found != pytest.approx(total(problem, "cat-rs", epsilon="0.5", copies=3), rel=1e-6)


def test_a_teacher_that_is_not_there_or_knows_other_classes_is_named(problem, tmp_path):
    settings = OBJECTIVES["cat-rs"].settings.model_validate(
        {"name": "cat-rs", "sigma": SIGMA, "epsilon": "1", "teacher": "nowhere.safetensors"}
    )
    with pytest.raises((CheckpointError, ConfigError), match="nowhere"):
        OBJECTIVES["cat-rs"].prepare(settings)
    saved_teacher(tmp_path / "seven.safetensors", classes=7)
    with pytest.raises(ConfigError, match="knows 7 classes, the data 10; name a network"):
        total(problem, "cat-rs", epsilon="1", teacher=str(tmp_path / "seven.safetensors"))
