"""The report: one HTML page that needs nothing beside it, read as text, and opened in a browser where there is one."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import rows as rows_of

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
        return out, (tmp_path / "ev" / "report.html").read_text(encoding="utf-8")

    return make


def galleries(text: str) -> list[dict]:
    found = re.findall(r'<script type="application/json">(.*?)</script>', text, flags=re.DOTALL)
    return [json.loads(each, parse_constant=pytest.fail) for each in found]


def test_a_page_of_two_runs_has_their_numbers_pictures_and_differences(trained, page, tmp_path):
    runs = trained("table", 2, "--prior", "Laplace")
    out, text = page(*runs, *QUICK)
    assert "report.html" in out
    for row in rows_of(tmp_path / "ev" / "runs.csv"):
        assert row["log p(x)"].replace("-", "−") in html.unescape(text)
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
