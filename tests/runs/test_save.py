"""What is built in Python is saved and comes back; models survive pickle, deep copies and a trip to another process."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pyro
import pytest
import torch
import yaml
from app_additions import MODEL, PRIOR
from helpers import BITS, DIMS, GUIDES, LIKELIHOODS, NETWORK, PRIORS, build, data_for, elbo_of, vae_of
from safetensors.torch import load_file
from torch import nn

from pyro_vae import VAE, Dims, fit, load, save
from pyro_vae.data import Digits, Split
from pyro_vae.estimators import ScoreFunction
from pyro_vae.guides import DiagonalNormal, PerDatum, SemiAmortized
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.models import Conditional, Ladder, TwoLayer
from pyro_vae.networks import MLP, Backbone, Convolutional
from pyro_vae.priors import ExemplarPrior, StandardNormal, VampPrior
from pyro_vae.runs import Run, describe_model

ROOT = Path(__file__).parents[2]


def same_bound(one, other, *batch) -> None:
    """The same numbers from the same random numbers."""
    values = []
    for model in (one, other):
        model.eval()
        torch.manual_seed(1)
        values.append(elbo_of(model).estimate(model.model, model.guide, *batch).bound)
    torch.testing.assert_close(*values, rtol=0, atol=0)


@pytest.mark.parametrize("cls", PRIORS + GUIDES + LIKELIHOODS)
def test_every_part_comes_back(cls, tmp_path):
    """Also those that are made of training data, which are not in the file."""
    vae = vae_of(cls)
    with torch.no_grad():
        for value in vae.parameters():
            value.add_(0.1)
    save(vae, tmp_path / "run")
    same_bound(vae, load(tmp_path / "run"), data_for(cls, vae, 4))


def test_a_backbone_with_weights_is_downloaded_once(tmp_path, monkeypatch):
    """`load` takes the weights of the folder: it works without a network, and what was downloaded is not asked for."""
    from torchvision.models import _api, get_model

    asked = []

    def download(*args, **kwargs):
        asked.append(args)
        if len(asked) > 1:
            raise OSError("no network")
        torch.manual_seed(3)
        return get_model("mobilenet_v3_small", weights=None).state_dict()

    monkeypatch.setattr(_api, "load_state_dict_from_url", download)
    trained = partial(Backbone, name="mobilenet_v3_small", weights="DEFAULT", size=32)
    dims = Dims(2, (3, 8, 8))
    vae = VAE(StandardNormal(dims), DiagonalNormal(dims, trained), Bernoulli(dims, NETWORK))
    save(vae, tmp_path / "run")
    same_bound(vae, load(tmp_path / "run"), torch.ones(2, 3, 8, 8))
    assert len(asked) == 1
    with pytest.raises(
        OSError, match=r"weights: DEFAULT of mobilenet_v3_small could be neither read from .*no network"
    ):
        DiagonalNormal(dims, trained)


def models():
    small = partial(DiagonalNormal, network=NETWORK)
    bernoulli = partial(Bernoulli, network=NETWORK)
    yield VAE(
        StandardNormal(DIMS), DiagonalNormal(DIMS, partial(MLP, hidden=(7,), activation=nn.ReLU)), bernoulli(DIMS)
    )
    yield VAE(StandardNormal(DIMS), SemiAmortized(DIMS, small, steps=2), bernoulli(DIMS))
    yield VAE(VampPrior(DIMS, 4, init="data"), PerDatum(DIMS), bernoulli(DIMS))
    image = Dims(2, (1, 4, 4), train=BITS)
    convolutional = partial(Convolutional, channels=(4,))
    yield VAE(
        ExemplarPrior(image, 12, 6), DiagonalNormal(image, convolutional), Normal(image, NETWORK, learn_scale=True)
    )
    yield TwoLayer(DIMS, StandardNormal, small, bernoulli, top=3, between=small)
    yield Ladder(DIMS, StandardNormal, small, bernoulli, top=3, network=NETWORK)


@pytest.mark.parametrize("number", range(6))
def test_options_come_back(number, tmp_path):
    model = list(models())[number]
    save(model, tmp_path / "run")
    again = load(tmp_path / "run")
    assert type(again) is type(model)
    assert not again.training
    same_bound(model, again, BITS[:4])
    save(again, tmp_path / "twice")
    configs = [yaml.safe_load((tmp_path / name / "config.yaml").read_text()) for name in ("run", "twice")]
    same_bound(model, load(tmp_path / "twice"), BITS[:4])
    assert configs[0]["guide"]["class_path"] == configs[1]["guide"]["class_path"]


def test_a_conditional_model_comes_back(tmp_path):
    dims, y = Dims(2, (1, 4, 4), classes=3), torch.tensor([0, 1, 2, 2])
    parts = StandardNormal, partial(DiagonalNormal, network=NETWORK), partial(Bernoulli, network=NETWORK)
    model = Conditional(dims, *parts)
    save(model, tmp_path / "run")
    same_bound(model, load(tmp_path / "run"), BITS[:4], y)


def test_double_precision_comes_back(tmp_path):
    vae = vae_of(StandardNormal).double()
    save(vae, tmp_path / "run")
    same_bound(vae, load(tmp_path / "run"), BITS[:4].double())


def test_own_classes_come_back(tmp_path, monkeypatch):
    for name, text in (("own_priors", PRIOR), ("own_models", MODEL)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_models
    import own_priors

    model = own_models.Chain(
        DIMS, partial(own_priors.Cauchy, scale=3.0), DiagonalNormal, partial(Bernoulli, network=NETWORK)
    )
    save(model, tmp_path / "run")
    again = load(tmp_path / "run", trust=["own_priors", "own_models"])
    assert again.top.scale == 3.0
    same_bound(model, again, BITS[:4])


def test_what_cannot_be_written_down_is_named(tmp_path):
    class Local(nn.Module):
        pass

    vae = VAE(
        StandardNormal(DIMS),
        DiagonalNormal(DIMS, lambda *shapes: MLP(*shapes, hidden=[3])),
        Bernoulli(DIMS, partial(MLP, activation=Local)),
    )
    with pytest.raises(
        ValueError, match=r"guide.network: <function .*<lambda>.*likelihood.network.activation: .*Local"
    ):
        save(vae, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    save(vae_of(StandardNormal), tmp_path / "taken")
    with pytest.raises(FileExistsError, match="exists and is left as it is"):
        save(vae_of(StandardNormal), tmp_path / "taken")


def trained(how: str) -> VAE:
    vae = vae_of(VampPrior)
    if how == "fit":
        split = Split(BITS)
        data = Digits().load()._replace(train=split, valid=split, test=split)
        list(fit(vae, data, epochs=2, batch_size=5))
    if how == "stock":
        svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
        svi.step(BITS)
    return vae


@pytest.mark.parametrize("how", ["new", "fit", "stock"])
@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda vae: pickle.loads(pickle.dumps(vae))])
def test_models_survive_pickle_and_copies(how, copied):
    vae = trained(how)
    twin = copied(vae)
    same_bound(vae, twin, BITS[:4])
    svi = pyro.infer.SVI(twin.model, twin.guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    before = torch.cat([p.detach().flatten().clone() for p in twin.parameters()])
    svi.step(BITS)
    assert not torch.equal(torch.cat([p.detach().flatten() for p in twin.parameters()]), before)


def test_a_pickle_holds_no_training_data():
    big = Dims(2, (1, 4, 4), train=torch.zeros(20_000, 1, 4, 4))
    vae = VAE(StandardNormal(big), build(DiagonalNormal, big), build(Bernoulli, big))
    assert len(pickle.dumps(vae)) < 200_000
    assert vae.dims.train is None
    assert vae.dims.train_size == 20_000


def test_a_trained_model_reaches_a_worker_process(tmp_path):
    """Both ways, by torch's own multiprocessing with a fresh interpreter."""
    program = """
        import torch
        import torch.multiprocessing as mp
        from pyro_vae import VAE, Dims
        from pyro_vae.guides import DiagonalNormal
        from pyro_vae.likelihoods import Bernoulli
        from pyro_vae.priors import StandardNormal

        def work(vae):
            with torch.no_grad():
                for p in vae.parameters():
                    p.zero_()
            return vae

        if __name__ == "__main__":
            dims = Dims(2, (1, 4, 4))
            vae = VAE(StandardNormal(dims), DiagonalNormal(dims), Bernoulli(dims))
            with mp.get_context("spawn").Pool(1) as pool:
                back = pool.apply(work, (vae,))
            print(sum(float(p.detach().abs().sum()) for p in back.parameters()))
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(program))
    command = [sys.executable, str(tmp_path / "program.py")]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "0.0"


def test_the_state_of_an_estimator_is_kept_beside_the_weights(tmp_path):
    vae, split = vae_of(StandardNormal), Split(BITS)
    data = Digits().load()._replace(train=split, valid=split, test=split)
    training = fit(vae, data, epochs=2, batch_size=5, estimator=ScoreFunction(control="running"))
    run = Run(tmp_path / "run", yaml.safe_dump(describe_model(vae)))
    for record in training:
        run.record(record, vae, training.estimator.state)
    kept = load_file(tmp_path / "run" / "model.safetensors")
    assert kept["training/estimator/steps"] == 8
    assert kept["training/estimator/average"] == training.estimator.state["average"]
    same_bound(vae, load(tmp_path / "run"), BITS[:4])
