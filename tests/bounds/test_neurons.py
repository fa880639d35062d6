"""Neurons that are bounded together: groups at one position, which see the same of every value."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hydrabench.bounds import BOUNDS, neurons, patches
from hydrabench.bounds.neurons import grouped, heeded, in_chunks
from hydrabench.bounds.program.program import program_of, read


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (3, [([[0, 2, 3]], [[True, True, True]])]),
        (2, [([[0], [3]], [[True], [True]]), ([[2]], [[True]])]),
        (1, [([[0]], [[True]]), ([[2]], [[True]]), ([[3]], [[True]])]),
    ],
)
def test_groups_of_two_channels_and_three_positions_worked_by_hand(length, expected):
    """Neurons 0, 1, 2 and 3, 4, 5 are at positions 0, 1, 2; wanted are 0 and 3, both at position 0, and 2.

    Three fit one chunk and stay single. Otherwise position 0 comes first, because 2 of its neurons are wanted.
    """
    wanted = torch.tensor([[True, False, True], [True, False, False]]).view(1, 2, 1, 3)
    found = [(members.tolist(), known.tolist()) for members, known in grouped(wanted, length)]
    assert found == expected


def test_groups_of_one_chunk_are_filled_up_to_the_largest_worked_by_hand():
    """Neurons 0 to 3, 4 to 7, 8 to 11 are channels 0, 1, 2; wanted are 0, 4, 8 at position 0; 1 and 5; 2 and 6."""
    wanted = torch.tensor([[True, True, True, False], [True, True, True, False], [True, False, False, False]])
    first, second = grouped(wanted.view(1, 3, 1, 4), 6)
    assert first[0].tolist() == [[0, 1], [4, 5], [8, 9]]  # neuron 9 fills up the group of position 1
    assert first[1].tolist() == [[True, True], [True, True], [True, False]]
    assert second[0].tolist() == [[2], [6]]
    assert second[1].all()


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), length=st.integers(1, 40), image=st.booleans(), share=st.floats(0.05, 1))
def test_every_wanted_neuron_is_worked_on_once_and_its_result_returned_in_its_place(seed, length, image, share):
    rng = torch.Generator().manual_seed(seed)
    shape = (3, 4, 2, 3) if image else (3, 11)
    wanted = torch.rand(shape, generator=rng) < share
    wanted.view(-1)[seed % wanted.numel()] = True
    rows = [members.numel() for members, _ in grouped(wanted, length)]
    known = torch.cat([members[known] for members, known in grouped(wanted, length)])
    assert known.sort().values.tolist() == wanted.flatten().nonzero().squeeze(1).tolist()
    assert max(rows) <= length

    def work(images, neurons):
        assert len(neurons) % len(images) == 0
        if image and len(neurons) > len(images):  # one position for every group
            spots = (neurons % 6).view(-1, len(images))
            assert (spots == spots[0]).all()
        return torch.stack([images.repeat(len(neurons) // len(images)), neurons])

    largest = patches.CHUNK["cpu"] // length
    expected = wanted.flatten().nonzero().squeeze(1)
    shares = []
    with torch.no_grad():
        found = in_chunks(wanted, largest, work, shares.append)
    assert torch.equal(found, torch.stack([expected // wanted[0].numel(), expected % wanted[0].numel()]))
    assert shares == sorted(set(shares))
    assert len(shares) == len(rows)
    assert shares[-1] == 1


def flat_network(*, reader):
    """Images (1, 2, 2), four values of a convolution, a ReLU; `reader` makes the logits of them."""
    network = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Flatten(), *reader).eval()
    return network, read(program_of(network.requires_grad_(False)))


def test_entries_that_pruned_layers_read_by_hand():
    linear = nn.Linear(4, 2)
    linear.weight.data = torch.tensor([[0.0, 1, 0, 0], [0, -2, 0, 3]])
    _, nodes = flat_network(reader=(linear, nn.ReLU(), nn.Linear(2, 2)))
    read_entries = heeded(nodes, 1, 4)
    assert read_entries is not None
    assert read_entries.tolist() == [False, True, False, True]
    assert heeded(nodes, len(nodes), 2) is None  # the output: nothing reads it


def test_what_anything_but_a_linear_layer_reads_counts_whole():
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(4, 2)).eval()
    nn.init.zeros_(network[2].weight)
    assert heeded(read(program_of(network)), 1, 4) is None
    over_last_axis = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Linear(2, 2), nn.Flatten(), nn.Linear(4, 2))
    assert heeded(read(program_of(over_last_axis.eval())), 1, 4) is None


@pytest.mark.parametrize("kind", ["symbolic", "crown"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_neurons_that_nobody_reads_are_not_asked_and_bounds_stay(kind, norm, monkeypatch, tiny_problem):
    """Of a linear layer of 6 neurons with 1 weight in 5, in networks with and without batch norm between layers."""
    chunks, asked = neurons.grouped, []
    monkeypatch.setattr(neurons, "grouped", lambda wanted, length: asked.append(wanted) or chunks(wanted, length))
    few = many = 0
    for seed in range(8):
        network, x, y, rng = tiny_problem(seed)
        (first, *_) = (module for module in network if isinstance(module, nn.Linear))
        first.weight.data *= torch.rand(first.weight.shape, generator=rng) < 0.2
        fewer = BOUNDS[kind](network, x, y, 0.1, norm=norm)
        few += sum(int(wanted.sum()) for wanted in asked)
        asked.clear()
        with monkeypatch.context() as patch:
            patch.setattr(neurons, "heeded", lambda *_: None)
            torch.testing.assert_close(fewer, BOUNDS[kind](network, x, y, 0.1, norm=norm), rtol=1e-9, atol=1e-9)
        many += sum(int(wanted.sum()) for wanted in asked)
        asked.clear()
    assert 0 < few < 0.8 * many
