"""Opening what is to be judged, and completing the settings that go with it."""

from __future__ import annotations

import pytest
import torch

from hydrabench.checkpoints import save_checkpoint
from hydrabench.errors import CheckpointError, ConfigError
from hydrabench.evaluators import CleanSettings, PgdSettings, VerifiedSettings
from hydrabench.workflows.evaluation.loading import open_subject, settings_for
from hydrabench.workflows.run_options import RunOptions


@pytest.fixture(scope="module")
def subject(line, cpu):
    return open_subject(str(line.train), options=cpu)


def test_the_radius_defaults_to_the_one_the_checkpoint_was_trained_for(subject):
    assert settings_for(subject, {"kind": "pgd"}) == PgdSettings(epsilon="8/255")
    assert settings_for(subject, {"kind": "ibp", "epsilon": "1/255"}) == VerifiedSettings(kind="ibp", epsilon="1/255")
    assert settings_for(subject, {"kind": "clean"}) == CleanSettings()
    with pytest.raises(ConfigError, match=r"does not say which radius it was trained for in this norm; add --epsilon"):
        settings_for(subject, {"kind": "pgd", "norm": "l2"})


def test_devices_and_precisions_that_are_not_there_are_refused(line):
    with pytest.raises(ConfigError, match=r"device 'gpu' is not available here; choose cpu, cuda or cuda:N"):
        open_subject(str(line.train), options=RunOptions("gpu"))
    with pytest.raises(ConfigError, match=r"device 'meta' is not available here"):
        open_subject(str(line.train), options=RunOptions("meta"))
    with pytest.raises(ConfigError, match=r"unknown precision 'float16'; did you mean 'bfloat16'\?"):
        open_subject(str(line.train), options=RunOptions("cpu"), precision="float16")


def test_a_checkpoint_with_nan_weights_is_refused(subject, cpu, tmp_path):
    checkpoint = subject.checkpoint
    state = {key: tensor.clone() for key, tensor in checkpoint.network.state_dict().items()}
    state["9.bias"][3] = torch.nan
    save_checkpoint(tmp_path / "nan.safetensors", state, checkpoint.header)
    with pytest.raises(CheckpointError, match=r"holds values that are not finite \(NaN or infinity\) in 9\.bias"):
        open_subject(str(tmp_path / "nan.safetensors"), options=cpu)
