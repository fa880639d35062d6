"""Keyed streams, devices, exact arithmetic."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from hydrabench.errors import ConfigError, HydrabenchError, lookup
from hydrabench.runtime import World, environment, exact_arithmetic, pick_device, require_exact_arithmetic, stream


def test_a_stream_depends_on_its_whole_key_and_on_nothing_else():
    first = torch.rand(4, generator=stream(0, "pgd", 17))
    torch.rand(100)
    assert torch.equal(first, torch.rand(4, generator=stream(0, "pgd", 17)))
    others = [stream(1, "pgd", 17), stream(0, "smoothing", 17), stream(0, "pgd", 1, 7), stream(0, "pgd", "17", "")]
    assert all(not torch.equal(first, torch.rand(4, generator=other)) for other in others)


@pytest.mark.parametrize("version", [1, 2])
def test_a_stream_of_either_version_depends_on_its_key_alone(version):
    first, again, other = (torch.rand(4, generator=stream(0, key, version=version)) for key in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_keys_whose_seeds_agree_in_32_bits_have_streams_of_their_own():
    """Found by search: torch's CPU generator takes the low 32 bits of a seed, and these two keys share them."""
    keys = [("collision", 27447), ("collision", 69730)]
    old = [torch.rand(1000, generator=stream(*key)) for key in keys]
    assert torch.equal(*old)
    new = [torch.rand(1000, generator=stream(*key, version=2)) for key in keys]
    assert (new[0] != new[1]).float().mean() > 0.99


def test_the_state_of_a_stream_is_that_of_the_mersenne_twister_as_numpy_has_it():
    """Another implementation: 624 words of SHAKE-256, and the outputs that MT19937 gives for them."""
    words = np.frombuffer(hashlib.shake_256(b"0\x1fpgd\x1f17").digest(2496), dtype="<u4")
    numpys = np.random.RandomState()
    numpys.set_state(("MT19937", words, 624))
    drawn = torch.empty(2000, dtype=torch.int64).random_(0, 2**24, generator=stream(0, "pgd", 17, version=2))
    assert drawn.tolist() == (numpys.randint(0, 2**32, 2000, dtype=np.uint32) % 2**24).tolist()


def test_a_stream_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    torch.rand(4, generator=stream("any"))
    assert torch.equal(before, torch.get_rng_state())


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="device 'tpu' is not available here; choose cpu, cuda or cuda:N"):
        pick_device("tpu")
    assert pick_device("cpu").type == "cpu"


def test_reduced_precision_is_off_inside_and_restored_outside():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with exact_arithmetic():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_convolutions_in_tf32_are_refused_on_a_gpu(monkeypatch):
    with exact_arithmetic():
        require_exact_arithmetic(torch.device("cuda"))
        require_exact_arithmetic(torch.device("cpu"))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    require_exact_arithmetic(torch.device("cpu"))
    with pytest.raises(ValueError, match=r"cudnn.allow_tf32 is True, not False; .*exact_arithmetic"):
        require_exact_arithmetic(torch.device("cuda"))


def test_one_process_is_a_world_of_its_own():
    world = World()
    assert (world.size, world.is_main) == (1, True)
    assert world.share(lambda: "mine") == ["mine"]
    assert world.on_main(lambda: 3) == 3

    def fail() -> None:
        raise HydrabenchError("no")

    with pytest.raises(HydrabenchError, match="no"):
        world.on_main(fail)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("whole", [1, 2, 7, 64])
def test_the_processes_share_a_batch_in_order_and_evenly(whole, size):
    shares = []
    for rank in range(size):
        world = World()
        world.rank, world.size = rank, size
        shares.append(list(range(whole))[world.rows(whole)])
    assert [row for share in shares for row in share] == list(range(whole))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_adds_up_its_own_numbers_only():
    world, tensor = World(), torch.ones(3)
    assert world.total([0.1, 2]) == [0.1, 2]
    world.add_up(tensor)
    assert torch.equal(tensor, torch.ones(3))


def test_a_process_of_several_takes_a_gpu_of_its_own(monkeypatch):
    """There is none here, so the refusal tells which one it was."""
    monkeypatch.setenv("LOCAL_RANK", "63")
    with pytest.raises(ConfigError, match="device 'cuda:63' is not available here"):
        pick_device("cuda")


def test_the_environment_names_the_versions_a_number_may_depend_on():
    found = environment(torch.device("cpu"))
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert {"python", "device", "hydrabench", "pyautoattack", "auto_LiRPA"} <= set(found)


def test_looking_a_name_up_suggests_the_closest():
    registry = {"ibp": 1, "crown-ibp": 2}
    assert lookup("bound", registry, "ibp") == 1
    with pytest.raises(ConfigError, match=r"unknown bound 'crwon-ibp'; did you mean 'crown-ibp'"):
        lookup("bound", registry, "crwon-ibp")
