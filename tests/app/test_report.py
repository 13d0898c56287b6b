"""The report: one HTML page that needs nothing beside it, read as text, and opened in a browser where there is one."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import rows as rows_of
from PIL import Image

from pyro_vae.app.report.page import _differences, _flat
from pyro_vae.files import read_yaml
from pyro_vae.reports import LogLikelihood
from pyro_vae.runs import read_records

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
QUICK = ["--test_particles", "60", "--test_images", "20", "--out", "ev"]
TINY = ["--test_particles", "5", "--test_images", "5", "--latent", "2", "--batch_size", "10"]
HOSTILE = "</script><script>document.title='taken'</script>"
rng = np.random.default_rng(0)
DATA = {"table": rng.normal(size=(60, 3)), "signal": rng.normal(size=(60, 1, 50)), "image": rng.random((60, 3, 6, 5))}


@pytest.fixture
def trained(script, tmp_path):
    """Trains runs of some data: ``trained("table", 2)`` gives two folders."""

    def train(kind: str, runs: int, *options: str) -> list[str]:
        if kind == "named":  # a table with missing values, whose names try to get out of the page
            x = pd.DataFrame(
                np.where(rng.random((60, 3)) < 0.1, np.nan, rng.normal(size=(60, 3))), columns=[HOSTILE, "b", "c"]
            )
            x["label"] = rng.choice(["<b>one", "two"], 60)
            x.to_csv(tmp_path / "named.csv", index=False)
            data = ["--data.path", "named.csv", "--data.labels", "label"]
        else:
            np.save(tmp_path / f"{kind}.npy", DATA[kind])
            data = ["--data.path", f"{kind}.npy"]
        folders = [f"{kind}{seed}" for seed in range(runs)]
        for seed, folder in enumerate(folders):
            words = [*TINY, "--data", "Arrays", *data, "--seed", str(seed), "--out", folder, *options]
            code, _, err = script("train", "--epochs", str(seed + 1), *words)
            assert (code, err) == (0, "")
        return folders

    return train


@pytest.fixture
def page(script, tmp_path):
    """Makes a report: what was told, and the page."""

    def make(*words: str) -> tuple[str, str]:
        code, out, err = script("report", *words)
        assert (code, err) == (0, "")
        path = re.search(r"Report: (\S+\.html)", out)[1]
        return out, (tmp_path / path).read_text(encoding="utf-8")

    return make


def galleries(text: str) -> list[dict]:
    found = re.findall(r'<script type="application/json">(.*?)</script>', text, flags=re.DOTALL)
    return [json.loads(each, parse_constant=pytest.fail) for each in found]


def test_a_page_of_two_runs_has_their_numbers_pictures_and_differences(trained, page, tmp_path):
    runs = trained("table", 2, "--prior", "Laplace")
    out, text = page(*runs, *QUICK)
    assert f"ev/report-{'-'.join(runs)}.html" in out
    for row in rows_of(tmp_path / "ev" / "runs.csv"):
        assert row["log p(x)"].replace("-", "−") in html.unescape(text).replace("\u00a0", " ")
    for run in runs:
        for picture in (tmp_path / run / "figures").glob("*.png"):
            assert f'alt="{picture.stem.replace("_", " ")} of {run}"' in text
    differences = text.split("What differs")[1].split("</table>")[0]
    assert re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", differences) == [
        ("epochs", "1", "2"),
        ("seed", "0", "1"),
    ]
    assert read_yaml(tmp_path / runs[0] / "config.yaml")["prior"]["class_path"] in text
    (gallery,) = galleries(text)
    cell = json.loads(next((tmp_path / "ev" / "cells").glob("table0-LogLikelihood*.json")).read_text())
    shown = gallery["runs"][0]["numbers"]["log_px"]
    assert shown == pytest.approx(cell["each"]["log_px"], rel=1e-4)
    assert gallery["index"] == list(range(12))  # a fifth of 60 data
    for notice in cell["notices"]:
        assert notice.replace("-", "−") in html.unescape(text).replace("-", "−")


def test_the_page_asks_for_nothing_from_outside_and_hostile_names_stay_text(trained, page, tmp_path):
    (run,) = trained("named", 1)
    config = (tmp_path / run / "config.yaml").read_text()
    (tmp_path / run / "config.yaml").write_text(f"{config}note: \"{HOSTILE}<img src='http://x'>\"\n")
    (tmp_path / run / "versions.json").write_text(json.dumps({"torch": HOSTILE}))
    (tmp_path / run / "figures" / "<b>.png").write_bytes(b"no picture")
    _, text = page(run, *QUICK)
    assert HOSTILE not in text
    assert text.count("<script") == text.count("</script>") == 2
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", text)
    assert "default-src 'none'" in text
    assert galleries(text)[0]["names"][0] == HOSTILE
    assert set(galleries(text)[0]["label"]) <= {"<b>one", "two"}
    assert any(None in row for row in galleries(text)[0]["values"][0])  # what is missing
    assert not any(None in row for row in galleries(text)[0]["values"][1])  # and its imputation


def test_what_evaluate_measured_is_in_the_page_and_not_measured_again(trained, page, script, tmp_path):
    (run,) = trained("table", 1)
    few = "{class_path: Calibration, init_args: {images: 20, draws: 9}}"
    metrics = f"[LogLikelihood, {{class_path: Surgery, init_args: {{images: 9, draws: 2}}}}, {few}]"
    assert script("evaluate", run, *QUICK, "--metrics", metrics)[0] == 0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LogLikelihood, "measure", lambda *_: pytest.fail("computed again"))
        _, text = page(run, *QUICK)
    assert "mutual information" in text
    assert f'alt="calibration of {run}"' in text
    assert '<td class="under">  of other data, at least</td>' in text  # a row that belongs to the one above
    assert (
        "Measured: TestBound, LogLikelihood, Calibration(images=20, draws=9), Surgery(images=9, draws=2)"
        in html.unescape(text)
    )
    assert "information" in galleries(text)[0]["runs"][0]["numbers"]
    shutil.rmtree(tmp_path / run)
    trained("table", 1, "--prior", "Laplace")  # other weights of the same name
    _, text = page(run, *QUICK)
    assert "mutual information" not in text


def test_runs_of_other_data_damaged_ones_and_unfinished_ones(trained, page, tmp_path):
    runs = [*trained("table", 2), *trained("signal", 1), *trained("image", 1, "--figures", "[]")]
    lines = (tmp_path / runs[1] / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / runs[1] / "metrics.jsonl").write_text(lines[0] + lines[1][:20])  # cut while it was written
    assert len(read_records(tmp_path / runs[1])) == 1
    assert read_records(tmp_path) == []
    weights = bytearray((tmp_path / runs[0] / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / runs[0] / "model.safetensors").write_bytes(weights)
    _, text = page(*runs, *QUICK)
    plain = html.unescape(text)
    assert "Left out: table0.</strong> table0/model.safetensors: damaged" in plain
    assert "The training was ended after 1 of 2 epochs." in plain
    assert "they were evaluated on different data" in plain
    assert "The run has no figures" in plain
    assert [(each["kind"], len(each["runs"])) for each in galleries(text)] == [
        ("table", 1),
        ("signal", 1),
        ("image", 1),
    ]


def test_a_damaged_record_is_told(trained, tmp_path):
    (run,) = trained("table", 1)
    for wrong in ("{}\n", "[1]\n", "x\n", '{"epoch": "x"}\n'):
        (tmp_path / run / "metrics.jsonl").write_text(wrong)
        with pytest.raises(ValueError, match=r"metrics.jsonl, line 1: damaged"):
            read_records(tmp_path / run)


def test_large_data_do_not_make_a_large_page(script, page, tmp_path):
    np.save(tmp_path / "large.npy", rng.integers(0, 256, (60, 3, 100, 100), dtype=np.uint8))
    small = [
        "--guide.network.hidden",
        "[4]",
        "--likelihood",
        "DiscretizedLogistic",
        "--likelihood.network.hidden",
        "[4]",
    ]
    words = ["--data", "Arrays", "--data.path", "large.npy", *TINY, "--epochs", "1", "--out", "run", *small]
    assert script("train", *words, "--figures", "[]")[0] == 0
    _, text = page("run", *QUICK, "--shown", "1000")
    (gallery,) = galleries(text)
    assert len(gallery["index"]) == 12
    assert "12 of the 12 test images" in text
    assert len(text) < 3_000_000
    _, text = page("run", *QUICK, "--shown", "4")
    assert len(galleries(text)[0]["index"]) == 4
    cell = json.loads(next((tmp_path / "ev" / "cells").glob("run-LogLikelihood*.json")).read_text())
    worst = np.argsort(-np.nan_to_num(np.array(cell["each"]["pareto_k"], float)))[:2]
    assert set(worst) <= set(galleries(text)[0]["index"])
    _, text = page("run", *QUICK, "--shown", "0")
    assert not galleries(text)


def test_a_page_stays_below_3_mb_whatever_the_pictures_are_and_tells_what_it_left_out(trained, page, script, tmp_path):
    (run,) = trained("table", 1)
    figures = tmp_path / run / "figures"
    noise = rng.integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    for name in ("one", "two", "three"):
        Image.fromarray(noise).save(figures / f"{name}.png")
    Image.new("RGB", (20_000, 20)).save(figures / "wide.png")
    Image.new("1", (12_000, 9_000)).save(figures / "bomb.png")
    Image.new("RGBA", (5, 5), (0, 0, 0, 0)).save(figures / "clear.png")
    (figures / "broken.png").write_bytes(b"no picture")
    np.save(tmp_path / "colors.npy", rng.integers(0, 256, (300, 3, 30, 30), dtype=np.uint8))
    small = ["--guide.network.hidden", "[4]", "--likelihood.network.hidden", "[4]", "--figures", "[]", "--epochs", "1"]
    assert script("train", "--data", "Arrays", "--data.path", "colors.npy", *TINY, *small, "--out", "colors")[0] == 0
    for copy in "abc":
        shutil.copytree(tmp_path / "colors", tmp_path / copy)
    _, text = page(run, "colors", *"abc", *QUICK)
    assert len(text) < 3_000_000
    told = html.unescape(text)
    for name in ("bomb", "broken"):
        assert f"Left out: {run}/figures/{name}.png: no PNG that can be shown" in told
    assert "Smaller or coarser here than in the folder, for the size of this page: one, three, two" in told
    assert picture_of(text, f"wide of {run}").size == (4000, 4)
    assert picture_of(text, f"clear of {run}").getpixel((0, 0)) == (255, 255, 255)


def picture_of(text: str, alt: str) -> Image.Image:
    source = re.search(rf'src="data:image/\w+;base64,([^"]*)" alt="{alt}"', text)[1]
    return Image.open(io.BytesIO(base64.b64decode(source)))


def test_a_large_image_is_shown_smaller(script, page, tmp_path):
    np.save(tmp_path / "large.npy", rng.random((30, 1, 20, 800)))
    small = ["--guide.network.hidden", "[4]", "--likelihood.network.hidden", "[4]", "--figures", "[]", "--epochs", "1"]
    words = ["--data", "Arrays", "--data.path", "large.npy", "--data.kind", "image", *TINY, *small, "--out", "run"]
    assert script("train", *words)[0] == 0
    _, text = page("run", *QUICK)
    assert galleries(text)[0]["size"] == [4, 160]


def test_particles_too_few_for_k_are_told_and_data_are_sorted_by_what_is_known(trained, page):
    (run,) = trained("table", 1)
    _, text = page(run, "--test_particles", "5", "--out", "ev")
    assert "k̂ is not known, since that takes K of at least 30 particles, and K is 5 (--test_particles)." in text
    assert [each["name"] for each in galleries(text)[0]["measures"]] == ["bound", "log_px", "ess"]


def test_one_datum_that_is_shown_is_the_worst(trained, page, tmp_path):
    (run,) = trained("table", 1)
    _, text = page(run, *QUICK, "--shown", "1")
    cell = json.loads(next((tmp_path / "ev" / "cells").glob(f"{run}-LogLikelihood*.json")).read_text())
    assert galleries(text)[0]["index"] == [int(np.nanargmax(np.array(cell["each"]["pareto_k"], float)))]


def test_a_run_whose_record_is_not_finite_or_is_gone(trained, page, tmp_path):
    runs = trained("table", 2)
    record = tmp_path / runs[0] / "metrics.jsonl"
    record.write_text(
        re.sub(r"(: )-?[\d.]+(?=[,}])", r"\1null", record.read_text()).replace('"epoch": null', '"epoch": 1')
    )
    (tmp_path / runs[1] / "metrics.jsonl").unlink()
    _, text = page(runs[0], *QUICK)
    assert "<svg" in text
    _, text = page(*runs, *QUICK)
    assert "How the training went is not known: metrics.jsonl holds no epoch, or is not there." in text


def test_the_same_run_by_several_names_is_one_and_a_copy_is_told(trained, page, tmp_path):
    (run,) = trained("table", 1)
    (tmp_path / "link").symlink_to(run)
    out, text = page(run, f"./{run}", "link", f"{run}/../{run}", *QUICK)
    assert out.count("measured") == 1
    assert f"<title>{run}</title>" in text
    shutil.copytree(tmp_path / run, tmp_path / "copy")
    _, text = page(run, "copy", *QUICK)
    assert f"The weights are the same: {run}, copy." in text
    footer = text.split("<footer")[1].split("</footer>")[0]
    assert f" {run} copy --test_particles" in footer
    assert "&#39;" not in footer  # the command, which can be given again


def test_a_damaged_configuration_is_told_in_one_line(trained, page, tmp_path):
    runs = trained("table", 2)
    config = tmp_path / runs[0] / "config.yaml"
    config.write_text(config.read_text()[:-20] + "\n  a: [b\nc: d")
    out, _ = page(*runs, *QUICK)
    (line,) = [line for line in out.splitlines() if line.startswith("Left out: ")]
    assert "damaged, or no YAML" in line
    assert line.endswith(")")


def test_log_px_given_labels_is_not_taken_for_log_px(trained, page):
    one, *_ = trained("named", 1, "--model", "Conditional")
    Path(one).rename("conditional")
    (other,) = trained("named", 1)
    out, text = page(other, "conditional", *QUICK)
    assert "Not the same quantity in all rows: conditional: log p(x|y)" in " ".join(out.split())
    assert "Not the same quantity in all rows: conditional: log p(x|y)" in text
    assert {"name": "log_px", "label": "log p(x) or log p(x|y)", "high": False} in galleries(text)[0]["measures"]


def test_data_that_are_given_are_named(trained, page, tmp_path):
    (run,) = trained("table", 1)
    _, text = page(run, *QUICK)
    assert "Measured on data that were given" not in text
    assert "36 training, 12 validation and 12 test data" in text
    shutil.rmtree(tmp_path / "ev")
    np.save(tmp_path / "other.npy", rng.normal(size=(90, 3)))
    _, text = page(run, *QUICK, "--data", "Arrays", "--data.path", "other.npy")
    assert "Measured on data that were given with the command: <code>--data Arrays, --data.path other.npy" in text
    assert "18 test data" in text
    assert "validation and" not in text


def test_classes_of_one_name_and_two_modules_are_told_apart():
    configs = [
        _flat({"prior": {"class_path": f"{module}.Normal", "init_args": {"scale": 1}}}) for module in ("mine", "yours")
    ]
    assert _differences(configs) == {"prior": ["mine.Normal", "yours.Normal"]}
    other = _flat({"prior": {"class_path": "mine.Laplace", "init_args": {"scale": 1}}})
    assert _differences([configs[0], other]) == {"prior": ["Normal", "Laplace"]}
    mixed = [
        _flat({"guide": {"class_path": f"mine.{name}", "init_args": {option: 1}}, "seed": seed})
        for seed, (name, option) in enumerate([("One", "x"), ("Other", "y")])
    ]
    assert list(_differences(mixed)) == ["guide", "guide.x", "guide.y", "seed"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "runs: name at least one run folder"),
        (("nowhere",), "nothing can be compared here. nowhere: nowhere: there is no such run folder"),
        (("nowhere", "--shown", "-1"), "shown: expected at least 0, got -1"),
    ],
)
def test_wrong_input_is_told(script, words, told):
    code, _, err = script("report", *words, "--out", "ev")
    assert code != 0
    assert told in err


CHECK = """<script>
addEventListener("load", () => setTimeout(() => {
  const first = document.querySelector(".gallery"), data = JSON.parse(first.querySelector("script").textContent);
  const order = () => [...first.querySelectorAll(".tile")].map(each => Number(each.dataset.at));
  const found = { worst: order(), shown: first.querySelector(".detail strong").textContent, title: document.title };
  first.querySelector(".order").click();
  found.best = order();
  first.querySelectorAll(".tile")[1].dispatchEvent(new MouseEvent("mouseenter"));
  found.pointed = first.querySelector(".detail").textContent;
  found.stops = first.querySelectorAll(".tile[tabindex='0']").length;
  first.querySelectorAll(".tile")[1].focus();
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  found.next = Number(document.activeElement.dataset.at);
  found.narrowest = Math.min(...[...document.querySelectorAll("th:first-child")].map(each => each.offsetWidth));
  found.index = data.index;
  found.width = innerWidth;
  found.wide = document.documentElement.scrollWidth - innerWidth;
  found.paper = getComputedStyle(document.body).backgroundColor;
  document.querySelector("#theme").click();
  found.other = getComputedStyle(document.body).backgroundColor;
  found.hidden = [...document.querySelectorAll(".gallery")].filter(each => each.hidden).length;
  const result = document.createElement("output");
  result.textContent = JSON.stringify(found);
  document.body.append(result);
}, 50));
</script>"""


PHONE = """<iframe src="checked.html" style="border:0;width:390px;height:800px"></iframe><output></output><script>
setTimeout(() => {
  const inside = document.querySelector("iframe").contentDocument;
  document.querySelector("output").textContent = inside.querySelector("output").textContent;
}, 1000);
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here (Debian: apt install chromium)")
@pytest.mark.parametrize("kind", ["table", "named", "signal", "image"])
def test_in_a_browser_the_worst_stand_first_and_nothing_is_wider_than_a_phone(trained, page, tmp_path, kind):
    runs = trained(kind, 2)
    _, text = page(*runs, *QUICK)
    (tmp_path / "checked.html").write_text(text.replace("</body>", f"{CHECK}</body>"))
    (tmp_path / "phone.html").write_text(PHONE)
    found = {}
    for name, scheme in (("light", 1), ("dark", 0)):
        dom = browse(tmp_path / "phone.html", f"--blink-settings=preferredColorScheme={scheme}")
        found[name] = json.loads(html.unescape(re.search(r"<output>(.*?)</output>", dom)[1]))
    (gallery,) = galleries(text)
    k = np.array([np.nan if each is None else each for each in gallery["runs"][0]["numbers"]["pareto_k"]])
    for seen in found.values():
        ranked = k[seen["worst"]]
        known = ranked[~np.isnan(ranked)]
        assert (np.diff(known) <= 0).all()
        assert np.isnan(ranked[len(known) :]).all()
        assert (np.diff(k[seen["best"]][: len(known)]) >= 0).all()
        assert str(gallery["index"][seen["worst"][0]]) in seen["shown"]
        assert f"Test datum {gallery['index'][seen['best'][1]]}" in seen["pointed"]
        assert all(run in seen["pointed"] for run in runs)
        assert seen["stops"] == 1
        assert seen["next"] == seen["best"][2]
        assert seen["narrowest"] >= 40
        assert seen["width"] == 390
        assert seen["wide"] <= 0
        assert seen["hidden"] == 0
        assert "taken" not in seen["title"]
        assert seen["paper"] != seen["other"]
    assert found["light"]["paper"] != found["dark"]["paper"]


def browse(page: Path, *options: str) -> str:
    """The page as a browser has it after its scripts ran."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", *options]
    command += ["--allow-file-access-from-files"]  # a page may look into another that it frames
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True)
    return done.stdout
