"""Trackers are told of a run as it goes on, also of one that goes on after a cut, and what they raise costs the run nothing."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import ClassVar

import pytest

from pyro_vae.runs import read_records

QUICK = ["--epochs", "3", "--batch_size", "650", "--metrics", "[TestBound]", "--figures", "[Samples]", "--out", "run"]
SMALL = ["--guide.network.hidden", "[4]", "--likelihood.network.hidden", "[4]"]
OWN = '''
import json
import os
import signal
from pathlib import Path
from pyro_vae.reports import Tracker


class Log(Tracker):
    """Writes down whatever it is told."""

    def __init__(self, file: str = "log.txt"):
        self.file = file

    def write(self, *told):
        with Path(self.file).open("a") as log:
            log.write(json.dumps(told) + "\\n")

    def begin(self, folder, config, done):
        assert (folder / "config.yaml").is_file()
        self.write("begin", str(folder), config["epochs"], done)

    def epoch(self, record):
        lines = Path("run/metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["epoch"] == record.epoch
        self.write("epoch", record.epoch, record.valid.bound, dict(record.watched))

    def result(self, values):
        self.write("result", sorted(values))
        values.clear()

    def figure(self, name, figure):
        assert Path(f"run/figures/{name}.png").is_file()
        self.write("figure", name, len(figure.axes) > 0)

    def end(self, status):
        self.write("end", status)


class Stops(Tracker):
    """Is like a scheduler that ends the run after an epoch, before its checkpoint is written."""

    def __init__(self, after: int = 2):
        self.after = after

    def epoch(self, record):
        if record.epoch == self.after:
            os.kill(os.getpid(), signal.SIGTERM)
            raise KeyboardInterrupt


class Raises(Tracker):
    """Fails at whatever it is told; or from an epoch on."""

    def __init__(self, first: int = 0):
        self.first = first

    def begin(self, folder, config, done):
        if not self.first:
            raise ConnectionError("no network")

    def epoch(self, record):
        print("told", record.epoch)
        if record.epoch >= self.first:
            raise ConnectionError(f"no network in epoch {record.epoch}")

    def result(self, values):
        raise ConnectionError

    def figure(self, name, figure):
        raise ConnectionError

    def end(self, status):
        raise ConnectionError


class NotOne:
    pass


class Unfinished(Tracker):
    pass
'''


@pytest.fixture
def train(script, tmp_path):
    """Trains quickly, in a folder with `OWN` in it: exit code, output, errors."""
    (tmp_path / "mine.py").write_text(OWN)
    return lambda *options: script("train", *QUICK, *(SMALL if "Arrays" not in options else []), *options)


def told(file: str = "log.txt") -> list[list]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def test_it_is_told_of_everything_in_order(train):
    code, out, err = train("--trackers", "[mine.Log]", "--watch", "[rates]")
    assert (code, err) == (0, "")
    assert "Left out: the errors" in out
    assert "Left out: tracker" not in out
    records = read_records(Path("run"))
    assert told() == [
        ["begin", "run", 3, 0],
        *(["epoch", each.epoch, each.valid.bound, {"rates": {"w": 1e-3, "phi": 1e-3}}] for each in records),
        ["result", ["test", "test_bound", "weights"]],
        ["figure", "samples", True],
        ["end", "finished"],
    ]
    assert [each.watched for each in records] == [{"rates": {"w": 1e-3, "phi": 1e-3}}] * 3
    assert json.loads(Path("run/result.json").read_text()).keys() == {"test", "test_bound", "weights", "finished"}
    # With its options given, and a finished run that is left as it is, which nobody is told of.
    again = ["--trackers", "[{class_path: mine.Log, init_args: {file: other.txt}}]", "--resume", "true"]
    code, out, _ = train(*again)
    assert (code, "nothing is left to do" in out) == (0, True)
    assert not Path("other.txt").exists()


def test_without_options_the_file_is_what_it_was(train):
    assert train()[0] == 0
    first = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])
    assert list(first) == ["epoch", "train", "valid", "lr", "seconds"]


def test_what_is_watched_is_in_the_file_under_keys_of_its_own(train):
    names = ["rates", "gradient_norm", "steps_per_second", "kl_per_dimension"]
    assert train("--watch", f"[{', '.join(reversed(names))}]")[0] == 0
    first = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])
    assert list(first) == ["epoch", "train", "valid", "lr", "seconds", *names]
    assert len(first["kl_per_dimension"]["t"]) == 8
    assert sum(first["kl_per_dimension"]["t"]) == pytest.approx(first["valid"]["kl"], rel=0.2)
    assert read_records(Path("run"))[0].watched == {name: first[name] for name in names}


def test_a_run_that_goes_on_tells_of_no_epoch_that_is_kept_again(train):
    cut = ["--checkpoint_every", "epoch", "--trackers", "[mine.Log, mine.Stops]"]
    assert train(*cut)[0] == 143
    assert [each[0] for each in told()] == ["begin", "epoch", "epoch", "end"]
    assert told()[-1] == ["end", "interrupted"]
    # The second epoch was told, and its checkpoint was not written: it comes again, with the same numbers.
    second = told()[2]
    assert train("--resume", "true", "--trackers", "[mine.Log]", "--watch", "[rates]")[0] == 0
    later = told()[4:]
    assert later[0] == ["begin", "run", 3, 1]
    assert [each[1] for each in later if each[0] == "epoch"] == [2, 3]
    assert later[1][:3] == second[:3]
    assert later[-1] == ["end", "finished"]
    assert [bool(each.watched) for each in read_records(Path("run"))] == [False, True, True]


def test_one_that_fails_costs_a_line_and_nothing_else(train):
    code, out, err = train("--trackers", "[mine.Raises, mine.Log, {class_path: mine.Raises, init_args: {first: 2}}]")
    assert (code, err) == (0, "")
    assert out.count("Left out: tracker") == 2
    assert "Left out: tracker Raises.begin: ConnectionError: no network" in out
    assert "Left out: tracker Raises.epoch: ConnectionError: no network in epoch 2" in out
    assert [line for line in out.splitlines() if line.startswith("told")] == ["told 1", "told 2", "told 3"]
    assert [each[0] for each in told()] == ["begin", "epoch", "epoch", "epoch", "result", "figure", "end"]
    assert json.loads(Path("run/result.json").read_text())["finished"] is True
    assert Path("run/figures/samples.png").is_file()


def test_it_is_told_of_a_run_that_fails(train):
    code, _, err = train("--trackers", "[mine.Log]", "--optimizer", "SGD", "--optimizer.lr", "1e30")
    assert code == 1
    assert "the bound became NaN or infinite" in err
    assert [each[0] for each in told()] == ["begin", "end"]
    assert told()[-1] == ["end", "failed"]


WRONG = {
    "--trackers [Tensorbord]": "--trackers Tensorbord: there is no class of that name. Did you mean TensorBoard?",
    "--trackers TensorBoard": "--trackers: expected a list, such as '[TensorBoard]', got TensorBoard",
    "--trackers [mine.Logg]": "mine.Logg: there is no class or function Logg in mine",
    "--trackers [mine.NotOne]": "mine.NotOne does not correspond to a subclass of Tracker",
    "--trackers [mine.Unfinished]": "mine.Unfinished is abstract",
    "--trackers [pyro_vae.reports.TestBound]": "does not correspond to a subclass of Tracker",
    "--trackers [os.system]": "os.system is not allowed here",
    "--trackers [{class_path: mine.Log, init_args: {fil: x}}]": "Log has no option fil; did you mean --trackers[0].file?",
    "--watch [rats]": "--watch[0]: expected one of rates, gradient_norm, steps_per_second, kl_per_dimension, got 'rats'",
    "--watch rates": "--watch: expected a list, got 'rates'",
    "--watch null": "--watch: expected a list, got null",
}


@pytest.mark.parametrize("options", WRONG)
def test_what_is_wrong_is_told_before_data_are_read(train, options):
    option, value = options.split(maxsplit=1)
    code, out, err = train("--data", "Arrays", "--data.path", "none.npy", option, value)
    assert code == 2
    assert WRONG[options] in " ".join(err.split())
    assert "none.npy" not in out + err
    assert not Path("run").exists()


class Writer:
    """Stands in for PyTorch's SummaryWriter, and keeps what it is called with."""

    calls: ClassVar[list[tuple]] = []

    def __init__(self, log_dir, purge_step=None):
        self.calls.append(("open", log_dir, purge_step))

    def __getattr__(self, name):
        return lambda *args, **options: self.calls.append((name, *args[:1], *args[-1:]))


@pytest.fixture
def writer(monkeypatch):
    """TensorBoard, as if it were installed."""
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "calls", [])
    return Writer.calls


def test_tensorboard_goes_on_in_the_same_log(train, writer):
    code, out, _ = train("--checkpoint_every", "epoch", "--trackers", "[TensorBoard, mine.Stops]", "--watch", "[rates]")
    assert (code, "Left out: tracker" in out) == (143, False)
    assert writer[:2] == [("open", "run/tensorboard", 0), ("add_text", "config", 0)]
    assert [each[-1] for each in writer if each[1:2] == ("valid/bound",)] == [1, 2]
    assert {"rates/w", "rates/phi", "train/kl", "lr", "seconds"} <= {
        each[1] for each in writer if each[0] == "add_scalar"
    }
    assert writer[-1] == ("close",)
    writer.clear()
    assert train("--resume", "true", "--trackers", "[TensorBoard]")[0] == 0
    assert writer[0] == ("open", "run/tensorboard", 2)  # what the log has from epoch 2 on is not shown any more
    assert [each[-1] for each in writer if each[1:2] == ("valid/bound",)] == [2, 3]
    assert not [each for each in writer if each[0] == "add_text"]
    assert ("add_scalar", "result/test_bound/mean", 3) in writer


def test_without_tensorboard_a_line_says_what_to_install(train, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, out, err = train("--data", "Arrays", "--data.path", "none.npy", "--trackers", "[TensorBoard]")
    assert code == 1
    assert "error: trackers: TensorBoard is not installed here" in err
    assert "pip install tensorboard" in err
    assert "Traceback" not in err
    assert "none.npy" not in out + err
    assert not Path("run").exists()


def test_the_real_tensorboard_reads_one_log_after_a_cut(train):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert (
        train("--checkpoint_every", "epoch", "--trackers", "[TensorBoard, mine.Stops]", "--watch", "[rates]")[0] == 143
    )
    assert train("--resume", "true", "--trackers", "[TensorBoard]", "--watch", "[rates]")[0] == 0
    log = EventAccumulator("run/tensorboard")
    log.Reload()
    records = read_records(Path("run"))
    for name, values in (("valid/bound", [each.valid.bound for each in records]), ("rates/phi", [1e-3] * 3)):
        points = log.Scalars(name)
        assert [each.step for each in points] == [1, 2, 3]
        assert [each.value for each in points] == pytest.approx(values)
    assert [each.step for each in log.Images("samples")] == [3]
    assert log.Scalars("result/test_bound/mean")[-1].step == 3
