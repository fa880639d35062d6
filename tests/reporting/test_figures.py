"""Figures that need more than ledgers: weights of networks, epochs of training, several radii; and the page's size."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from safetensors.numpy import save_file

from hydrabench.ledger import CurveRecord, RunFolder
from hydrabench.reporting import build_leaderboard, drawing
from hydrabench.reporting.figures import figures
from hydrabench.reporting.page import IMAGES_INLINE, html_page
from hydrabench.reporting.weights import Material

ORIGIN = {"recipe": "digits-trades", "seed": 0}


def drawn(board, material, name):
    """A figure, and that it can be drawn in every format."""
    (figure,) = (one for one in figures(board, material) if one.name == name)
    assert [content[:4] for content in figure.files().values()][1:] == [b"\x89PNG", b"%PDF"]
    return figure.data


@pytest.fixture
def family(tmp_path, write_run):
    """A dense network with magnitudes 1 to 8 in two layers, and its pruned networks at density 0.5.

    HYDRA keeps the weights with odd magnitudes, least-weight-magnitude pruning the four largest.
    """
    whole = np.arange(1.0, 9.0, dtype=np.float32)
    kept = {"dense": whole > 0, "sparse-hydra": whole % 2 == 1, "sparse-lwm": whole > 4}
    phases = {"dense": "train", "sparse-hydra": "finetune", "sparse-lwm": "lwm"}
    runs, files = [], {}
    for name, mask in kept.items():
        weights = np.where(mask, whole, 0).reshape(2, 2, 2)
        save_file(
            {"first.weight": weights[0], "second.weight": weights[1], "second.bias": np.ones(2, dtype=np.float32)},
            tmp_path / f"{name}.safetensors",
        )
        about = {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), "arch": "cnn_small"}
        about |= {"objective": "trades", "density": float(mask.mean()), "phase": phases[name], "bytes": 99}
        about |= {"parameters": 8, "nonzero_parameters": int(mask.sum())}
        runs.append(
            write_run(tmp_path / "runs" / name, "pgd", name=name, header={"checkpoint": about, "origin": ORIGIN})
        )
        files[about["sha256"]] = tmp_path / f"{name}.safetensors"
    return build_leaderboard(runs), Material(files)


def test_kept_weights_are_counted_by_their_magnitude_in_the_dense_network(family):
    data = drawn(*family, "kept-weights")
    counts = data.groupby("method")["count"].sum().to_dict()
    assert counts == {"dense": 7, "HYDRA": 4, "LWM": 3}  # the largest magnitude lies beyond the 99.9th percentile
    small = data[data["high"] <= 4.5].groupby("method")["count"].sum().to_dict()
    assert small == {"dense": 4, "HYDRA": 2, "LWM": 0}
    assert data["fraction"].between(0, 1).all()


def test_the_density_of_each_layer_is_that_of_its_weights(family):
    data = drawn(*family, "layers").set_index(["network", "layer"])["density"].to_dict()
    assert data == {
        ("sparse-hydra", "first"): 0.5,
        ("sparse-hydra", "second"): 0.5,
        ("sparse-lwm", "first"): 0.0,
        ("sparse-lwm", "second"): 1.0,
    }


def test_training_shows_the_metric_that_chose_the_epoch(family, tmp_path):
    folder = tmp_path / "runs" / "train"
    folder.mkdir()
    (folder / "metrics.csv").write_text("epoch,loss,validation_robust_accuracy\n1,2.0,0.25\n2,1.0,0.5\n")
    (folder / "summary.json").write_text(json.dumps({"selection": {"metric": "robust_accuracy"}}))
    training = [RunFolder(folder, {"status": "complete"})]
    data = drawn(family[0], Material(training=training), "training")
    assert data[["epoch", "value"]].to_numpy().tolist() == [[1, 0.25], [2, 0.5]]
    assert set(data["run"]) == {"runs/train"}


def test_a_security_curve_falls_from_the_clean_accuracy(tmp_path, write_run):
    """Image 8 is wrong; images 0 and 1 break at 4/255, and 2 at 8/255."""
    far = {0: 4 / 255, 1: 4 / 255, 2: 8 / 255, 8: 0.0}

    def distances(records):
        return [CurveRecord(**vars(one), distance=far.get(one.index)) for one in records]

    radii = {"epsilons": ["2/255", "4/255", "8/255"], "version": 2}
    board = build_leaderboard([write_run(tmp_path / "a", "pgd", fails=[0, 1, 2], wrong=[8], edit=distances, **radii)])
    data = drawn(board, Material(), "security")
    assert data["epsilon"].tolist() == pytest.approx([0, 2 / 255, 4 / 255, 8 / 255])
    assert data["value"].tolist() == pytest.approx([0.9, 0.9, 0.7, 0.6])


def test_a_page_of_fifty_networks_stays_below_three_megabytes_however_many_images(tmp_path, write_run):
    """What is in the page of an image stops at the first thousand."""
    n = IMAGES_INLINE + 500
    header = {"dataset": {"name": "cifar10", "split": "test", "n": n}}
    runs = [
        write_run(tmp_path / str(one), "pgd", name=f"net-{one}", fails=range(one, n, 3), header=header)
        for one in range(50)
    ]
    page = html_page(build_leaderboard(runs))
    assert page.count('class="network"') == 50
    assert len(page.encode()) < 3e6
    told = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert {len(cell["bits"]) for row in told["rows"] for cell in row["cells"] if cell} == {IMAGES_INLINE // 4}


def axes_of(draw, data):
    canvas = Figure()
    draw(canvas, data)
    return canvas.axes[0]


def test_one_epoch_is_a_point_and_not_an_empty_figure():
    data = pd.DataFrame({"run": ["a"], "metric": ["robust_accuracy"], "epoch": [1], "value": [0.1]})
    (line,) = axes_of(drawing.training, data).get_lines()
    assert line.get_marker() == "o"


@pytest.mark.parametrize(("densities", "scale"), [([0.102, 0.1, 0.1], "linear"), ([0.5, 0.1, 0.01], "log")])
def test_layers_of_nearly_one_density_stand_on_a_linear_axis(densities, scale):
    data = pd.DataFrame({"network": "a", "layer": list("xyz"), "place": range(3), "density": densities})
    axes = axes_of(drawing.layers, data)
    assert axes.get_yscale() == scale
    assert scale == "log" or axes.get_ylim()[0] == 0
