"""A long evaluation shows how far it is."""

from __future__ import annotations

import io

from oracles import LinearGaussian
from rich.console import Console

from pyro_vae.app import console
from pyro_vae.evaluate import Annealing, ais, bracket, calibrate, gaps, log_px
from pyro_vae.scopes import tell_progress, telling_progress


def test_every_chunk_is_told_with_and_without_a_compiled_graph(monkeypatch, traced):
    oracle = LinearGaussian.random()
    monkeypatch.setattr("pyro_vae.evaluate.importance_sampling._CHUNK", 100)
    seen: list[tuple[str, int, int]] = []
    for compile in ("off", "on"):
        seen.clear()
        with telling_progress(lambda *now: seen.append(now)):
            log_px(oracle.vae, oracle.data(7), K=30, batch_size=3, compile=compile)
        done = [each[1] for each in seen]
        assert done == sorted({*done})
        assert seen[0] == ("log p(x)", 0, 210)
        assert seen[-1] == ("log p(x)", 210, 210)
        assert len(seen) > 5


def test_every_long_evaluation_tells_how_far_it_is():
    oracle = LinearGaussian.random()
    x, brief = oracle.data(5), {"annealing": Annealing(3), "batch_size": 2}
    long = {
        "log p(x) by annealing": lambda: ais(oracle.vae, x, 2, **brief),
        "the bracket of log p(x)": lambda: bracket(oracle.vae, x, 2, **brief),
        "gaps": lambda: gaps(oracle.vae, x, K=4, steps=3, rounds=3, copies=4, draws=4, batch_size=2),
        "calibration": lambda: calibrate(oracle.vae, x, 30, 9),
    }
    for what, evaluation in long.items():
        seen: list[tuple[str, int, int]] = []
        with telling_progress(lambda *now, seen=seen: seen.append(now)):
            evaluation()
        assert {each[0] for each in seen} == {what}
        assert len({each[2] for each in seen}) == 1
        done = [each[1] for each in seen]
        assert done == sorted(done)
        assert (done[0], done[-1]) == (0, seen[0][2])


def test_off_a_terminal_a_line_a_minute_says_how_much_is_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    screen = Console(file=io.StringIO(), width=200)
    with console.progress_bar(screen) as bar:
        for done in range(11):
            tell_progress("log p(x)", done, 10)
            now[0] += 25
        assert not bar.tasks
    lines = screen.file.getvalue().splitlines()
    assert lines[0] == "Evaluating log p(x): 30 % done, about 2:55 left"
    assert len(lines) == 3
