"""The page and its figures: complete without a network, and in a real browser sortable, filterable, without errors."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
import subprocess

import pytest

from hydrabench.reporting import build_leaderboard
from hydrabench.reporting.commands import command_of
from hydrabench.reporting.figures import FIGURES, figures
from hydrabench.reporting.page import html_page
from hydrabench.reporting.weights import Material

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# What a reader does, one step after the other; each says what is to be seen then.
READER = """
<script>
const networks = () => [...document.querySelectorAll("tr.network")].filter((row) => !row.hidden);
const rows = () => networks().map((row) => row.cells[0].textContent.trim());
const found = { first: rows() };
const heads = [...document.querySelectorAll("#board thead tr:last-child th")];
const head = (name) => heads.find((one) => one.textContent.trim() === name);
head("PGD-50 L∞ 8/255").querySelector("button").click();
found.falling = rows();
head("PGD-50 L∞ 8/255").querySelector("button").click();
found.rising = rows();
head("PGD-50 L∞ 8/255").querySelector("button").click();
found.back = rows();
const filter = document.getElementById("filter");
filter.value = "sparse 0.1"; filter.dispatchEvent(new Event("input"));
found.filtered = rows();
found.said = document.getElementById("shown").textContent;
filter.value = ""; filter.dispatchEvent(new Event("input"));
const box = document.querySelector("#choose input"); box.click();
found.hidden = heads[1].hidden;
document.querySelector("button.cell[data-column='1']").click();
found.dialog = document.getElementById("about").open && document.getElementById("about").textContent;
document.getElementById("about").close();
found.compared = document.getElementById("list").textContent;
found.squares = document.querySelectorAll("#grid i").length;
document.getElementById("only").click();
found.changed = document.querySelectorAll("#grid i").length;
const before = getComputedStyle(document.body).backgroundColor;
document.getElementById("theme").click();
found.dark = before !== getComputedStyle(document.body).backgroundColor;
document.title = JSON.stringify(found);
</script>
"""


@pytest.fixture(scope="module")
def board(tmp_path_factory, write_run):
    folder = tmp_path_factory.mktemp("page")
    runs = []
    for name, fails in (("dense", [7]), ("sparse-a", [1, 2, 3, 7]), ("sparse-b", [1, 2])):
        runs += [
            write_run(folder / name / "pgd", "pgd", name=name, fails=fails, wrong=[8]),
            write_run(folder / name / "ibp", "ibp", name=name, fails=[*fails, 4], wrong=[8]),
            write_run(folder / name / "smoothing", "smoothing", name=name, fails=fails),
        ]
    return build_leaderboard(runs)


@pytest.fixture(scope="module")
def page(board):
    return html_page(board, figures(board, Material()))


def test_the_page_needs_nothing_but_itself(page):
    """Only links that a reader clicks point elsewhere: to the files of figures beside it."""
    linked = re.findall(r'(?:src|href)="([^"#][^"]*)"', page)
    assert {link.split(",")[0].split("/")[0] for link in linked} <= {"data:image", "data:", "figures"}
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org)", re.sub(r'src="data:[^"]*"', "", page))
    assert len(page) < 3e6


def test_every_number_of_the_leaderboard_is_on_the_page_with_its_count(board, page):
    assert page.count('class="cell"') == sum(len(row.cells) for row in board.rows)
    assert 'title="8 of 10 images, 95 % interval [49.0, 94.3]">80.0 <small>' in page


def test_names_cannot_break_the_page(tmp_path, write_run):
    name = "</script><b>&amp;\"'"
    found = html_page(build_leaderboard([write_run(tmp_path / "a", "pgd", name=name)]))
    assert "<b>" not in found
    told = json.loads(re.search(r'id="data">(.*?)</script>', found, re.DOTALL)[1])
    assert told["rows"][0]["label"] == name


def test_figures_come_with_their_numbers_and_are_the_same_each_time(board):
    found = {one.name: one for one in figures(board, Material())}
    assert list(found) == ["sandwich", "certified", "margins"]
    assert set(found) < set(FIGURES)
    curve = found["certified"].data
    assert curve.groupby("network")["value"].first().to_dict() == {"dense": 0.9, "sparse-a": 0.6, "sparse-b": 0.8}
    assert found["sandwich"].data[["verified", "open", "broken", "wrong"]].sum(axis=1).eq(10).all()
    files = found["sandwich"].files()
    assert [data[:4] for data in files.values()] == [b"netw", b"\x89PNG", b"%PDF"]
    again = next(one for one in figures(board, Material()) if one.name == "sandwich")
    assert again.files() == files
    assert again.svg() == found["sandwich"].svg()


def test_an_envelope_over_noise_levels_is_called_one(tmp_path, write_run):
    runs = [write_run(tmp_path / f"{s}", "smoothing", sigma=s, radius=s, fails=range(int(4 * s))) for s in (0.25, 1.0)]
    (curve,) = (one.data for one in figures(build_leaderboard(runs), Material()) if one.name == "certified")
    envelope = curve[curve["network"] == "dense, envelope over σ"].set_index("radius")["value"]
    assert envelope.loc[0.0] == 0.9  # of σ = 0.25, which one image fails
    assert envelope.iloc[-1] == 0.6  # of σ = 1
    assert envelope.is_monotonic_decreasing


def test_a_run_that_stops_early_shows_the_radii_that_it_was_asked_for(tmp_path, write_run):
    """Without a tolerance it has no mean radius, and between the radii nothing is known."""
    asked = {"mode": "adaptive", "version": 4, "radii": [0.0, 0.25, 0.5], "radius": 0.3, "fails": [1, 2]}
    board = build_leaderboard([write_run(tmp_path / "a", "smoothing", **asked)])
    (curve,) = (one.data for one in figures(board, Material()) if one.name == "certified")
    assert curve["radius"].tolist() == [0.0, 0.25, 0.5]
    assert curve["value"].tolist() == [0.8, 0.8, 0.0]
    known = build_leaderboard([write_run(tmp_path / "b", "smoothing", **asked, tolerance=0.02)])
    (curve,) = (one.data for one in figures(known, Material()) if one.name == "certified")
    assert len(curve) > 10


def test_a_search_for_radii_shows_a_curve_and_a_distribution(tmp_path, write_run):
    run = write_run(tmp_path / "radii", "ibp", search_radius=True, wrong=[0], fails=[1, 2])
    (radii,) = (one for one in figures(build_leaderboard([run]), Material()) if one.name == "radii")
    curve = radii.data.set_index("radius")
    assert curve["value"].iloc[0] == curve["unbroken"].iloc[0] == 0.9
    assert curve["value"].iloc[-1] == curve["unbroken"].iloc[-1] == 0.7
    between = curve[(curve.index > 0.0041) & (curve.index < 0.0049)]
    assert (between["value"] == 0.7).all()
    assert (between["unbroken"] == 0.9).all()
    assert curve["density"].dropna().tolist() == [0.0, 0.0, 0.2] + [0.0] * 17
    assert radii.svg().startswith("<?xml")


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_reader_sorts_filters_hides_asks_and_compares(page, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", READER + "</body>"))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    done = subprocess.run([BROWSER, *options, path.as_uri()], capture_output=True, text=True, timeout=240, check=True)
    assert "CONSOLE" not in done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]
    found = json.loads(title.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    assert found["first"] == found["back"] == ["dense", "sparse-b", "sparse-a"]
    assert found["falling"] == ["dense", "sparse-b", "sparse-a"]
    assert found["rising"] == ["sparse-a", "sparse-b", "dense"]
    assert (found["filtered"], found["said"]) == (["sparse-b", "sparse-a"], "2 of 3 networks")
    assert found["hidden"]
    assert "pgd-50@1" in found["dialog"]
    assert "hydrabench attack --ckpt dense --attack pgd --norm linf --epsilon 8/255" in found["dialog"]
    assert (found["squares"], found["changed"]) == (10, 0)
    assert found["compared"] == "Only dense: none. Only sparse-b: none."
    assert found["dark"]


def test_a_command_says_what_differs_from_the_defaults(tmp_path, write_run):
    asked = {"pgd": {"steps": 7, "losses": ["margin"]}, "smoothing": {"samples": 1000, "mode": "adaptive"}, "ibp": {}}
    board = build_leaderboard([write_run(tmp_path / kind, kind, **more) for kind, more in asked.items()])
    told = {one.kind: shlex.split(command_of(one)) for one in board.evaluations}
    assert told["pgd"][:8] == ["hydrabench", "attack", "--ckpt", "dense", "--attack", "pgd", "--norm", "linf"]
    assert told["pgd"][told["pgd"].index("--steps") + 1] == "7"
    assert "--restarts" not in told["pgd"]
    assert "margin" in " ".join(told["pgd"])
    assert "--mode adaptive" in " ".join(told["smoothing"])
    assert "--samples 1000" in " ".join(told["smoothing"])
    assert told["ibp"][-2:] == ["-n", "10"]
    ibp = next(one for one in board.evaluations if one.kind == "ibp")
    assert command_of(ibp, 3).endswith("--index 3")


# What a phone of 400 pixels and a sheet of paper show: the page inside frames of these widths, whose origin is ours.
FRAMES = """<!DOCTYPE html><title></title>
<iframe id="phone" style="width: 400px; height: 900px; border: 0" srcdoc="{page}"></iframe>
<iframe id="paper" style="width: 1040px; height: 900px; border: 0" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const found = {{}};
  for (const name of ["phone", "paper"]) {{
    const inner = document.getElementById(name).contentDocument;
    if (name === "paper")
      for (const rule of inner.styleSheets[0].cssRules)
        if (rule.media && rule.media.mediaText === "print") rule.media.mediaText = "all";
    const style = (query) => inner.defaultView.getComputedStyle(inner.querySelector(query));
    const width = inner.documentElement.clientWidth;
    const wide = [...inner.querySelectorAll("h1, h2, p, figure, img, select, input, dd, .scroll")]
      .filter((one) => one.getClientRects().length && one.getBoundingClientRect().right > width + 1);
    found[name] = {{ width, whole: inner.documentElement.scrollWidth,
      wide: wide.map((one) => one.outerHTML.slice(0, 60)),
      font: style("body").fontSize, nav: style("nav").display, filter: style(".controls").display,
      overflow: style(".scroll").overflowX, table: inner.getElementById("board").getBoundingClientRect().right }};
  }}
  document.title = JSON.stringify(found);
}};
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_phone_scrolls_the_tables_alone_and_paper_shows_them_whole_without_controls(page, tmp_path):
    path = tmp_path / "frames.html"
    path.write_text(FRAMES.format(page=html.escape(page)))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([BROWSER, *options, path.as_uri()], capture_output=True, text=True, timeout=240, check=True)
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]))
    phone, paper = found["phone"], found["paper"]
    assert phone["whole"] <= phone["width"] <= 400
    assert phone["wide"] == paper["wide"] == []
    assert (phone["font"], phone["nav"], phone["overflow"]) == ("14px", "flex", "auto")
    assert (paper["nav"], paper["filter"], paper["overflow"]) == ("none", "none", "visible")
    assert paper["table"] <= paper["width"] <= 1040


# What people who see the page badly or not at all would miss; in the words of WCAG 2.2: names, contrast, structure.
ACCESSIBILITY = """
<script>
const luminance = (colour) => {
  const [r, g, b] = colour.match(/[0-9.]+/g).map((x) => x / 255)
    .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (one) => {
  for (; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if (!/rgba[(].*, 0[)]$/.test(colour)) return colour;
  }
  return "rgb(255, 255, 255)";
};
const contrast = (one) => {
  const [low, high] = [luminance(getComputedStyle(one).color), luminance(behind(one))].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
const all = (query) => [...document.querySelectorAll(query)];
const named = (one) => one.getAttribute("aria-label") || one.textContent.trim()
  || [...(one.labels || [])].some((label) => label.textContent.trim())
  || (one.getAttribute("aria-labelledby") || "").split(" ").some((id) => document.getElementById(id)?.textContent);
const faults = () => {
  const found = [];
  const say = (what, one) => found.push(what + ": " + one.outerHTML.slice(0, 60));
  all("button, input, select, a, summary, dialog, section, nav, [role=region], [role=img], fieldset")
    .filter((one) => !named(one)).forEach((one) => say("no name", one));
  all("img").filter((one) => !one.alt).forEach((one) => say("no text", one));
  all("th").filter((one) => !one.scope).forEach((one) => say("no scope", one));
  all(".scroll").filter((one) => one.tabIndex < 0).forEach((one) => say("no keyboard", one));
  all("[id]").filter((one) => all("#" + CSS.escape(one.id)).length > 1).forEach((one) => say("id twice", one));
  all("body *").filter((one) => one.getClientRects().length && [...one.childNodes].some((part) => part.nodeType === 3
    && part.textContent.trim()) && contrast(one) < 4.5).forEach((one) => say("contrast", one));
  const levels = all("main h2, h1, h3").filter((one) => !one.closest("dialog")).map((one) => Number(one.tagName[1]));
  levels.forEach((level, i) => { if (level > (levels[i - 1] || 0) + 1) found.push("heading: h" + level); });
  if (!document.documentElement.lang || !document.querySelector("main")) found.push("no language or main");
  return found;
};
const light = faults();
document.getElementById("theme").click();
const dark = faults();
document.title = JSON.stringify({ light, dark });
</script>
"""


def faults_of(page, path):
    path.write_text(page.replace("</body>", ACCESSIBILITY + "</body>"))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    done = subprocess.run([BROWSER, *options, path.as_uri()], capture_output=True, text=True, timeout=240, check=True)
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]))


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_controls_have_names_and_text_has_contrast_in_both_themes(page, tmp_path):
    assert faults_of(page, tmp_path / "page.html") == {"light": [], "dark": []}


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_faults_of_accessibility_are_found(page, tmp_path):
    planted = page.replace("--quiet: #595959", "--quiet: #959595").replace(
        '<label>Filter <input id="filter"', "<label><input"
    )
    planted = planted.replace('<h2 id="networks-title">', '<h4 id="networks-title">').replace('alt="', 'title="')
    planted = planted.replace('role="region" aria-label="Table of networks"', 'role="region"').replace(
        'scope="row"', ""
    )
    planted = planted.replace("<main>", '<main><h3>Too deep</h3><p id="list">Twice</p><button type="button"></button>')
    found = faults_of(planted, tmp_path / "page.html")
    kinds = {fault.partition(":")[0] for fault in found["light"]}
    assert kinds == {"no name", "no text", "no scope", "id twice", "contrast", "heading"}
    assert not any(fault.startswith("contrast") for fault in found["dark"])
