"""Many tables at once: what their paths say, what is passed over, and numbers as printed beside conservative ones."""

from __future__ import annotations

import pytest

from hydrabench.errors import ConfigError, LedgerError
from hydrabench.reporting import build_leaderboard, markdown
from hydrabench.reporting.cohen import read_table
from hydrabench.reporting.cohen_import import read_tables
from hydrabench.reporting.evaluations import read_evaluation
from hydrabench.reporting.legend import headings

HEAD = "idx\tlabel\tpredict\tradius\tcorrect\ttime"
LINES = ("0\t0\t0\t0.25\t1\t0:00:12.500000", "1\t1\t2\t0.526\t0\t0:00:01.000000", "2\t2\t-1\t0.0\t0\t0:00:00.000001",
         "3\t0\t0\t0.31\t1\t0:01:00.000000")  # fmt: skip


@pytest.fixture
def logs(tmp_path):
    """A folder of logs; each call adds one."""

    def add(name, *lines, head=HEAD):
        path = tmp_path / "logs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join((head, *lines)) + "\n")
        return tmp_path / "logs"

    return add


@pytest.mark.parametrize(
    ("path", "name", "sigma"),
    [
        ("cifar10/resnet110/noise_0.25/test/sigma_0.50", "resnet110/noise_0.25", 0.5),
        ("cifar10/resnet110/noise_0.25/test/sigma_0.50.tsv", "resnet110/noise_0.25", 0.5),
        ("cifar10/consistency/resnet110/noise_0.50_1682", "consistency/resnet110/noise_0.50_1682", 0.5),
        ("macer/cifar10/sigma_0.25", "macer", 0.25),
        ("cifar10/hydra-smoothing-cohen-1-sigma0.25.tsv", "hydra-smoothing-cohen-1", 0.25),
    ],
)
def test_name_data_set_and_sigma_come_from_the_path(logs, path, name, sigma):
    logs("other/cifar10/sigma_0.25", *LINES)
    found = read_tables(f"{logs(path, *LINES)}/**/*").evaluations
    (one,) = [evaluation for evaluation in found if str(evaluation.path).endswith(path)]
    assert (one.checkpoint.name, one.settings["sigma"], one.images.name) == (name, sigma, "cifar10")
    assert len({evaluation.protocol for evaluation in found}) == 1


def test_tables_of_one_network_at_two_sigmas_are_one_row(logs):
    logs("cifar10/a/noise_0.25/sigma_0.25", *LINES)
    folder = logs("cifar10/a/noise_0.25/sigma_0.50", *LINES)
    found = read_tables(str(folder))
    assert [one.checkpoint.name for one in found.evaluations] == ["noise_0.25", "noise_0.25"]
    board = build_leaderboard([], found.evaluations, external=found.rows)
    assert (len(board.rows), {column.sigma for column in board.columns}) == (1, {0.25, 0.5})


def test_tables_that_would_get_one_name_keep_their_whole_paths(logs):
    logs("cifar10/a/test/sigma_0.25", *LINES)
    folder = logs("cifar10/a/data/sigma_0.25", *LINES)
    names = {one.checkpoint.name for one in read_tables(f"{folder}/**").evaluations}
    assert names == {"test/sigma_0.25", "data/sigma_0.25"}


def test_what_holds_no_certificates_is_skipped_and_counted(logs):
    logs("cifar10/a/sigma_0.25", *LINES)
    logs("cifar10/empty/sigma_0.25")
    logs("cifar10/predictions/sigma_0.25", "0\t1\t1\t1\t0:00:01", head="idx\tlabel\tpredict\tcorrect\ttime")
    logs("cifar10/attack/sigma_0.25", "0\t1\t1\t1\t1\t0", head="idx\tlabel\tpredict\tbasePredict\tcorrect\ttime")
    logs("cifar10/plot.pdf", head="%PDF")
    logs("elsewhere/sigma_0.25", *LINES)
    folder = logs("cifar10/unknown", *LINES)
    found = read_tables(f"{folder}/**/*")
    assert len(found.evaluations) == 1
    assert found.skipped == {
        "have no line with an image": 1,
        "are predictions, which certify nothing": 1,
        "are logs of attacks": 1,
        "are no tables": 1,
        "do not say their dataset in their paths; add dataset=...": 1,
        "do not say their sigma in their paths; add sigma=...": 1,
    }
    assert len(read_tables(f"{folder}/**/*,dataset=svhn,sigma=1").evaluations) == 3


def test_a_table_that_is_wrong_is_refused_among_many(logs):
    logs("cifar10/a/sigma_0.25", *LINES)
    folder = logs("cifar10/b/sigma_0.25", "0\t0\t1\t0.3\t1\t0:00:01")
    with pytest.raises(LedgerError, match=r"b/sigma_0\.25, line 2: correct is 1, but predict is 1 and label 0"):
        read_tables(str(folder))


def test_patterns_that_find_nothing_and_names_for_several_are_refused(logs):
    folder = logs("cifar10/empty/sigma_0.25")
    with pytest.raises(ConfigError, match=r"no table of certificates among 1 files; 1 have no line with an image"):
        read_tables(f"{folder}/**/*")
    with pytest.raises(ConfigError, match="name is for one table"):
        read_tables(f"{folder},name=all")


def test_numbers_as_printed_stand_beside_the_conservative_ones(logs):
    """0.25 printed with two digits may be 0.245: it counts at 0.25 as printed, and not conservatively."""
    path = logs("cifar10/a/sigma_0.25", *LINES) / "cifar10" / "a" / "sigma_0.25"
    found = read_tables(f"{path},name=a,dataset=cifar10,sigma=0.25")
    board = build_leaderboard([], found.evaluations, external=found.rows)
    (row,) = board.rows
    values = {heading: row.cells[column].value for column, heading in headings(board).items()}
    assert values["smoothing σ=0.25 r=0.25 (imported)"] == 0.25
    assert values["as printed σ=0.25 r=0.25 (imported)"] == 0.5
    assert "as printed σ=0.25 r=0.5 (imported)" not in values
    text = markdown(board)
    assert "as its source prints it; no records" in text
    assert "radii of few digits count as they are printed" in text
    assert [column.kind for column in board.columns].count("published") == 1


def test_exact_radii_need_no_second_number(logs):
    exact = [line.replace("0.25\t", "0.250000000001\t") for line in LINES]
    assert not read_tables(str(logs("cifar10/a/sigma_0.25", *exact))).rows


def test_columns_that_no_metric_needs_may_be_missing(logs):
    folder = logs("cifar10/a/sigma_0.25", "1\t2\t2\t0.3", "0\t1\t-1\t0", head="idx\tlabel\tpredict\tradius")
    (found,) = read_tables(str(folder)).evaluations
    assert found.fields["index"].tolist() == [0, 1]
    assert found.fields["seconds"].tolist() == [0, 0]
    assert found.metrics["certified_accuracy@0.25"].values == (False, True)


def test_a_table_of_predictions_is_read_by_its_name(logs):
    folder = logs("p.tsv", *("0\t1\t1", "1\t1\t-1", "2\t1\t0"), head="idx\tlabel\tpredict")
    (found,) = read_tables(f"{folder}/p.tsv,name=a,dataset=cifar10,sigma=0.25").evaluations
    assert found.metrics["smoothed_accuracy"].values == (True, False, False)
    assert found.metrics["abstained"].values == (False, True, False)
    assert found.protocol == "smoothing-predict-imported-a@1"
    assert build_leaderboard([], [found]).rows


def test_our_own_predictions_are_read_again(tmp_path, write_run):
    from dataclasses import replace

    from hydrabench.reporting import table_text

    run = read_evaluation(write_run(tmp_path / "run", "smoothing", fails=[5]))
    (tmp_path / "p.tsv").write_text(table_text(replace(run, settings={**run.settings, "mode": "predict"})))
    (found,) = read_tables(f"{tmp_path / 'p.tsv'},name=a,dataset=digits,sigma=0.25").evaluations
    assert sum(found.metrics["smoothed_accuracy"].values) == 9


def test_tables_whose_labels_contradict_each_other_are_never_compared(logs):
    """The literature's ImageNet logs number the classes in two ways."""
    logs("imagenet/a/sigma_0.25", *LINES)
    logs("imagenet/b/sigma_0.25", *(line.replace("\t0\t0\t", "\t7\t7\t") for line in LINES))
    folder = logs("imagenet/c/sigma_0.25", *LINES[:2])
    found = read_tables(f"{folder}/**/*").evaluations
    assert [one.images.split for one in found] == ["test", "test, labels 2", "test"]
    assert len(build_leaderboard([], found).rows) == 3


@pytest.mark.parametrize("change", [
    lambda line: line.replace("\t0:", "\t0 days, 0:"), lambda line: line + " ",
    lambda line: line.replace("0.31", "3.1e-1"),
    lambda line: line.rpartition("\t")[0] + "\t60.0",
])  # fmt: skip
def test_reading_by_columns_gives_what_reading_line_by_line_gives(logs, change):
    """An unusual form of one line sends the whole table the slow way."""
    usual, unusual = logs("usual", *LINES) / "usual", logs("unusual", *LINES[:3], change(LINES[3])) / "unusual"
    fast, slow = read_table(usual), read_table(unusual)
    for name in ("index", "label", "predict", "printed"):
        assert getattr(fast, name).tolist() == getattr(slow, name).tolist()
    assert fast.seconds.tolist()[:3] == pytest.approx(slow.seconds.tolist()[:3])
    assert fast.seconds.tolist() == pytest.approx([12.5, 1, 1e-6, 60])
