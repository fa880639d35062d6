"""What `import hydrabench as hb` offers, how it is called, and what importing it costs."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

import hydrabench as hb

SIGNATURES = {
    "load": "ref, *, arch=None, dataset=None, density=None, normalization=None, model=None",
    "attack": (
        "network, data=None, attack='pgd', epsilon=None, *, n=None, out=None, resume=False, device='auto', "
        "precision='float32', name=None, data_dir=None, download=False, **settings"
    ),
    "certify": (
        "network, data=None, method='crown-ibp', epsilon=None, *, n=None, out=None, resume=False, device='auto', "
        "precision='float32', name=None, data_dir=None, download=False, **settings"
    ),
    "verify": "run, network=None, data=None, *, sample=50, seed=0, device='auto', data_dir=None, download=False",
    "report": "runs, out=None",
    "gate": "runs, against, *, max_drop=None, metric=None, alpha=0.01",
    "baseline": "runs, out",
    "train": (
        "recipe, network=None, data=None, *, out=None, resume=False, device='auto', data_dir=None, download=False, "
        "**computing"
    ),
    "prune": (
        "recipe, network, data=None, *, density=None, out=None, resume=False, device='auto', data_dir=None, "
        "download=False, **computing"
    ),
    "finetune": (
        "recipe, network, data=None, *, lwm=False, density=None, out=None, resume=False, device='auto', data_dir=None, "
        "download=False, **computing"
    ),
    "pipeline": "recipe, *, out=None, resume=False, device='auto', data_dir=None, download=False, **computing",
}
CLASSES = {
    "Run": {"path", "header", "summary", "records", "adversarial"},
    "TrainingRun": {"path", "header", "summary", "epochs", "module"},
    "Report": {"leaderboard", "numbers", "significance", "table", "to_html", "to_latex", "to_markdown"},
    "Gate": {"verdict", "outcome", "passed", "table", "changes", "refused", "to_markdown", "to_junit"},
}
OTHERS = {"HydrabenchError", "bounds", "masking"}


def test_the_public_names_are_these():
    assert set(hb.__all__) == {*SIGNATURES, *CLASSES, *OTHERS}
    assert set(dir(hb)) == {*hb.__all__, "__version__"}


@pytest.mark.parametrize("name", SIGNATURES)
def test_functions_are_called_so(name):
    parameters = inspect.signature(getattr(hb, name)).parameters.values()
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    assert str(inspect.Signature(plain)) == f"({SIGNATURES[name]})"


@pytest.mark.parametrize("name", SIGNATURES)
def test_functions_say_what_each_argument_is(name):
    function = getattr(hb, name)
    text = inspect.getdoc(function)
    assert "Args:" in text
    assert "Raises:" in text
    common = "The other arguments are those of" in text or "Args: those of `train`" in text
    shared = {"n", "out", "resume", "device", "name", "data_dir", "download", "computing", "network", "data", "epsilon"}
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"\b{parameter}\b", text) or (common and parameter in shared | {"recipe"}), parameter


@pytest.mark.parametrize("name", CLASSES)
def test_classes_have_these_documented_members(name):
    kind = getattr(hb, name)
    members = {member for member in dir(kind) if not member.startswith("_")} | set(
        getattr(kind, "__dataclass_fields__", ())
    )
    assert members == CLASSES[name]
    assert all(inspect.getdoc(getattr(kind, member)) for member in members - {"leaderboard", "verdict"})


def test_a_misspelt_name_is_an_error_that_lists_what_there_is():
    with pytest.raises(
        AttributeError, match=r"no attribute 'atack'; it offers Gate, HydrabenchError, .*attack, .*verify"
    ):
        hb.atack  # noqa: B018


def test_importing_the_package_imports_nothing_else():
    code = (
        "import sys, time\n"
        "start = time.perf_counter(); import hydrabench as hb; seconds = time.perf_counter() - start\n"
        "heavy = {'torch', 'numpy', 'pandas', 'pydantic', 'hydrabench.errors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert seconds < 0.2, seconds\n"
        "assert hb.bounds.crown_margins and hb.masking.attach_masks and issubclass(hb.HydrabenchError, Exception)\n"
        "assert 'hydrabench.api' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
