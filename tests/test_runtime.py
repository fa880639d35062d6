"""Keyed streams, devices, exact arithmetic."""

from __future__ import annotations

import pytest
import torch

from hydrabench.errors import ConfigError, HydrabenchError, lookup
from hydrabench.runtime import World, environment, exact_arithmetic, pick_device, stream


def test_a_stream_depends_on_its_whole_key_and_on_nothing_else():
    first = torch.rand(4, generator=stream(0, "pgd", 17))
    torch.rand(100)
    assert torch.equal(first, torch.rand(4, generator=stream(0, "pgd", 17)))
    others = [stream(1, "pgd", 17), stream(0, "smoothing", 17), stream(0, "pgd", 1, 7), stream(0, "pgd", "17", "")]
    assert all(not torch.equal(first, torch.rand(4, generator=other)) for other in others)


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


def test_one_process_is_a_world_of_its_own():
    world = World()
    assert (world.size, world.is_main) == (1, True)
    assert world.share(lambda: "mine") == ["mine"]
    assert world.on_main(lambda: 3) == 3

    def fail() -> None:
        raise HydrabenchError("no")

    with pytest.raises(HydrabenchError, match="no"):
        world.on_main(fail)


def test_the_environment_names_the_versions_a_number_may_depend_on():
    found = environment(torch.device("cpu"))
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert {"python", "device", "hydrabench", "pyautoattack", "auto_LiRPA"} <= set(found)


def test_looking_a_name_up_suggests_the_closest():
    registry = {"ibp": 1, "crown-ibp": 2}
    assert lookup("bound", registry, "ibp") == 1
    with pytest.raises(ConfigError, match=r"unknown bound 'crwon-ibp'; did you mean 'crown-ibp'"):
        lookup("bound", registry, "crwon-ibp")
