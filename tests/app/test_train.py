"""The command line as a person uses it: the whole path, a file of one's own, and what a wrong command says."""

from __future__ import annotations

import json
import signal
import textwrap
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import GUIDES, LIKELIHOODS, NETWORKS, PRIORS

from pyro_vae import load

ROOT = Path(__file__).parents[2]
QUICK = ["--epochs", "2", "--test_particles", "5", "--guide.network.hidden", "[8]"]
STUDENT = """
    import pyro.distributions as dist
    import torch
    from pyro_vae import Prior

    class StudentT(Prior):
        \"\"\"p(t) = ∏ StudentT(t_j; df).

        Args:
            dims: the sizes.
            df: degrees of freedom.
        \"\"\"

        def __init__(self, dims, df: float = 3.0):
            super().__init__(dims)
            self.df = df
            self.register_buffer("loc", torch.zeros(dims.latent))

        def forward(self):
            return dist.StudentT(self.df, self.loc, 1.0).to_event(1)
"""


@pytest.fixture
def train(script):
    """Runs train.py in this process and in a folder of its own: exit code, output, errors."""
    return partial(script, "train")


def read(metrics: Path) -> list[dict]:
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def test_the_main_job(train, tmp_path, start_script):
    process = start_script("train", *QUICK, "--out", "run")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    for expected in (
        "1300 train, 200 validation, 297 test",
        "1/2",
        "2/2",
        "ELBO bound (K = 1)",
        "log p(x)",
        "K = 5",
        "±",
    ):
        assert expected in out
    folder = tmp_path / "run"
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    figures = {file.stem for file in (folder / "figures").iterdir()}
    assert figures == {"learning_curves", "reconstructions", "samples", "latents", "traversals"}
    assert json.loads((folder / "result.json").read_text())["log_px"]["K"] == 5
    vae = load(folder)
    assert vae.dims.latent == 8
    assert type(vae.likelihood).__name__ == "Binomial"
    assert vae.likelihood.total_count == 16

    # The resolved configuration gives the same run again, bit for bit; two latents draw the plane.
    code, _, err = train("--config", "run/config.yaml", "--out", "again")
    assert (code, err) == (0, "")
    rows = [read(tmp_path / name / "metrics.jsonl") for name in ("run", "again")]
    for one, two in zip(*rows, strict=True):
        assert (one["train"], one["valid"]) == (two["train"], two["valid"])
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_image_data_with_the_same_command(train, name, mnist_root, tmp_path):
    options = ["--data", name, "--data.root", str(mnist_root), "--data.valid", "50", "--latent", "2", "--out", "run"]
    code, out, err = train(*QUICK, *options)
    assert (code, err) == (0, "")
    assert "250 train, 50 validation, 100 test, each 1×28×28" in out
    assert "Bernoulli" in out
    assert (tmp_path / "run" / "figures" / "plane.png").exists()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("iwae_mnist", "VAE: StandardNormal, DiagonalNormal, Bernoulli; d = 50, 425,284 parameters"),
        ("iwae_two_layer_mnist", "TwoLayer: StandardNormal, DiagonalNormal, Bernoulli; d = 100"),
        ("levels_fashion", "VAE: MaskedAutoregressiveFlow, DiagonalNormal, DiscretizedLogistic; d = 32"),
    ],
)
def test_a_published_configuration(train, mnist_root, config, told):
    path = str(ROOT / "experiments" / f"{config}.yaml")
    options = ["--data.root", str(mnist_root), "--data.valid", "50", "--test_particles", "3", "--test_images", "20"]
    code, out, err = train("--config", path, *options, "--epochs", "1", "--compile", "off", "--out", "run")
    assert (code, err) == (0, "")
    assert told in " ".join(out.split())
    assert ("bits per dimension" in out) == (config == "levels_fashion")


@pytest.mark.parametrize("slot", ["prior", "guide", "likelihood", "guide.network"])
def test_every_part_by_its_name(train, slot):
    for cls in {"prior": PRIORS, "guide": GUIDES, "likelihood": LIKELIHOODS, "guide.network": NETWORKS}[slot]:
        code, out, err = train(f"--{slot}", cls.__name__, "--print_config")
        assert (code, err) == (0, "")
        assert f"class_path: {cls.__module__.rpartition('.')[0]}.{cls.__name__}" in out
        assert train(f"--{slot}.help", cls.__name__)[0] == 0


def test_a_class_of_ones_own(train, tmp_path):
    (tmp_path / "my_priors.py").write_text(textwrap.dedent(STUDENT))
    options = ["--prior", "my_priors.StudentT", "--prior.df", "5"]
    code, out, err = train(*QUICK, *options, "--out", "run")
    assert (code, err) == (0, "")
    assert "VAE: StudentT, DiagonalNormal, Binomial" in out
    assert load(tmp_path / "run", trust="my_priors").prior.df == 5
    code, out, _ = train("--prior.help", "my_priors.StudentT")
    assert code == 0
    assert "degrees of freedom" in out


def test_ones_own_arrays(train, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(200, 12)), labels=rng.integers(0, 3, 200))
    options = ["--data", "Arrays", "--data.path", "x.npz", "--data.valid", "20", "--data.test", "20"]
    code, out, err = train(*QUICK, *options)
    assert (code, err) == (0, "")
    assert "VAE: StandardNormal, DiagonalNormal, Normal" in out
    assert len(list((tmp_path / "runs").glob("Arrays-*"))) == 1


MY_NETWORK = """
    from pyro_vae import Network
    from pyro_vae.networks import MLP

    class Narrow(Network):
        def __init__(self, in_shape, out_shape, hidden: list[int] = [3], unused: int = 4):
            super().__init__(in_shape, out_shape)
            self.body = MLP(in_shape, out_shape, hidden)

        def forward(self, inputs):
            return self.body(inputs)
"""


def test_a_class_that_is_swapped_in_keeps_its_own_defaults(train, tmp_path):
    """Their names agree with those of the default's options, and their values do not."""
    (tmp_path / "my_nets.py").write_text(textwrap.dedent(MY_NETWORK))
    network = ["--guide.network", "my_nets.Narrow", "--guide.network.unused", "7"]
    code, out, err = train("--data", "MNIST", "--optimizer", "Adadelta", *network, "--print_config")
    assert (code, err) == (0, "")
    config = yaml.safe_load(out)
    own = {"root": "data", "binarize": "dynamic", "valid": 10000, "split_seed": 0, "labelled": None, "label_seed": 0}
    assert config["data"]["init_args"] == own
    assert config["optimizer"]["init_args"]["lr"] == 1.0
    assert config["guide"]["init_args"]["network"]["init_args"] == {"hidden": [3], "unused": 7}


def test_options_of_the_default_classes_need_no_class(train, tmp_path):
    code, out, _ = train("--data.valid", "100", "--guide.network.hidden", "[9]", "--print_config")
    assert code == 0
    config = yaml.safe_load(out)
    assert config["data"]["init_args"]["valid"] == 100
    assert config["guide"]["init_args"]["network"]["init_args"]["hidden"] == [9]


def test_print_config_is_a_config(train, tmp_path):
    code, out, _ = train("--latent", "3", "--print_config")
    assert code == 0
    (tmp_path / "c.yaml").write_text(out)
    code, _, err = train("--config", "c.yaml", *QUICK)
    assert (code, err) == (0, "")


def test_help_explains_every_option(train, tmp_path):
    code, out, _ = train("--help")
    assert code == 0
    for option in ("data", "prior", "guide", "likelihood", "latent", "estimator", "optimizer", "schedule", "epochs",
                   "batch_size", "seed", "device", "test_particles", "test_images", "out", "print_config"):  # fmt: skip
        assert f"--{option}" in out


MINE = """
    import pyro.distributions as dist
    import torch
    from pyro_vae import Guide, Prior

    class NoPart:
        pass

    class Wrong(Prior):
        def forward(self):
            return dist.Normal(torch.zeros(3), 1.0).to_event(1)

    class Poisson(Guide):
        def forward(self, x):
            return dist.Poisson(torch.ones(len(x), self.dims.latent)).to_event(1)
"""
WRONG = {
    "class": (
        ["--prior", "Nothing"],
        "--prior Nothing: there is no class of that name. Known: AutoregressiveBernoulli",
    ),
    "class path": (["--prior", "no_file.Nothing"], "no_file"),
    "option": (["--pior", "StandardNormal"], "pior"),
    "option of a class": (["--guide.net", "MLP"], "DiagonalNormal has no option net; did you mean --guide.network?"),
    "type": (["--epochs", "many"], "epochs"),
    "batch": (["--batch_size", "5000"], "batch_size: expected between 1 and the 1300 training data, got 5000"),
    "epochs": (["--epochs", "0"], "epochs: expected at least 1"),
    "particles": (["--test_particles", "0"], "test_particles"),
    "split": (["--data.valid", "5000"], "valid: expected between 1 and"),
    "latent": (["--latent", "0"], "latent: expected a size of at least 1, got 0"),
    "estimator": (["--estimator.K", "0"], "K"),
    "gray pixels": (["--likelihood", "Bernoulli"], "binarize"),
    "no cuda": (["--device", "cuda"], "device: cuda was asked for, and PyTorch sees 0 CUDA devices"),
    "device": (["--device", "toaster"], "device: expected auto, cpu, cuda"),
    "no mps": (["--device", "mps"], "device: expected auto, cpu, cuda or cuda:<number>, got 'mps'"),
    "meta": (["--device", "meta"], "device: expected auto, cpu, cuda or cuda:<number>, got 'meta'"),
    "no device": (["--device="], "device: expected auto, cpu, cuda or cuda:<number>, got ''"),
    "out of memory": (
        ["--estimator", "IWAE", "--estimator.K", "10000000000000"],
        "out of memory: lower batch_size (it is 50) or",
    ),
    "no file": (["--data", "Arrays", "--data.path", "none.npy"], "none.npy: there is no such file"),
    "config": (["--config", "none.yaml"], "none.yaml"),
    "no class": (["--schedule.gamma", "0.1"], "name one with --schedule CLASS (known: CyclicLR,"),
    "bad config": (["--config", "bad.yaml"], "Problems parsing config"),
    "missing option": (["--data", "Arrays"], "--data.path: Arrays needs this option"),
    "no part": (["--prior", "mine.NoPart"], "Expected 'mine.NoPart' to be a subclass of"),
    "part of a wrong shape": (["--prior", "mine.Wrong"], "Wrong (Prior): expected event shape (8,), got (3,)"),
    "guide without rsample": (
        ["--guide", "mine.Poisson"],
        "latent 't' is discrete (Poisson) in the guide, and has a density",
    ),
    "discrete without rsample": (
        ["--guide", "Bernoulli", "--prior", "Bernoulli", "--estimator", "ELBO"],
        "its sites ['t'] have no rsample",
    ),
    "learning rate": (["--optimizer.lr", "-1"], "learning rate"),
    "out": (["--out", "taken"], "out: taken exists and is left as it is"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_command_says_what_is_wrong(train, name, tmp_path):
    options, message = WRONG[name]
    (tmp_path / "taken").mkdir()
    (tmp_path / "bad.yaml").write_text("a: [1")
    (tmp_path / "mine.py").write_text(textwrap.dedent(MINE))
    code, out, err = train(*options)
    assert code in (1, 2)
    assert "Traceback" not in out + err
    assert " ".join(message.split()) in " ".join(err.split())
    assert err.startswith("error: ")
    assert not (tmp_path / "runs").exists()
    assert not list((tmp_path / "taken").iterdir())


def test_divergence_is_told_and_the_last_epoch_kept(train, tmp_path):
    options = ["--optimizer", "SGD", "--optimizer.lr", "1e6", "--out", "run"]
    code, out, err = train(*QUICK, *options)
    assert code == 1
    assert "Traceback" not in out + err
    assert "the bound became NaN or infinite in epoch 1, step" in " ".join(err.split())


def test_ctrl_c_keeps_what_was_reached(tmp_path, start_script):
    process = start_script("train", "--epochs", "100000", "--compile", "off", "--test_particles", "5", "--out", "run")
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in out + err
    assert "Stopped in epoch" in out
    assert "log p(x)" in out
    assert (tmp_path / "run" / "figures" / "samples.png").exists()
    assert load(tmp_path / "run").dims.latent == 8


@pytest.mark.parametrize("options", [[], ["--data.channels", "none"]], ids=["vectors", "one channel"])
def test_convolutions_learn_signals(train, tmp_path, options):
    """Sines of any phase, (N, L): better than independent Gaussians of the same variances, whose log p(x) is known."""
    phase = np.random.default_rng(0).uniform(0, 2 * np.pi, (600, 1))
    x = np.sin(phase + np.arange(41) / 4) + 0.1 * np.random.default_rng(1).normal(size=(600, 41))
    np.save(tmp_path / "x.npy", x)
    data = ["--data", "Arrays", "--data.path", "x.npy", "--data.valid", "50", "--data.test", "50", *options]
    networks = ["--likelihood", "Normal", "--likelihood.learn_scale", "pixel"]
    networks += [f"--{part}.network=Convolutional" for part in ("guide", "likelihood")]
    small = [f"--{part}.network.channels=[8,16]" for part in ("guide", "likelihood")]
    rest = ["--latent", "2", "--epochs", "12", "--batch_size", "50", "--optimizer.lr", "3e-3", "--test_particles", "20"]
    code, _, err = train(*data, *networks, *small, *rest, "--out", "run")
    assert (code, err) == (0, "")
    independent = -0.5 * np.log(2 * np.pi * np.e * x.var(0)).sum()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["log_px"]["mean"] > independent + 5
    assert load(tmp_path / "run").dims.x_shape == ((1, 41) if options else (41,))
    figures = {file.stem for file in (tmp_path / "run" / "figures").iterdir()}
    assert {"reconstructions", "samples", "plane"} <= figures


@pytest.mark.parametrize("guide", ["InverseAutoregressive", "Sylvester"])
def test_without_noise_a_guide_without_a_mean_is_refused_before_training(train, tmp_path, guide):
    options = ["--guide", guide, "--objective.noise", "false", "--objective.beta", "0", "--epochs", "1", "--out", "run"]
    code, _, err = train(*options)
    assert code == 1
    assert err.startswith("error: objective: without noise, t is the mean of q")
    assert f"at site 't' of {guide}" in " ".join(err.split())
    assert not (tmp_path / "run").exists()
