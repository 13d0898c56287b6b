"""A whole epoch, and log p(x) of test images, by this project and by its peers: pythae's network, d = 16, MNIST's size."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import pyro
import torch
from PIL import Image
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor

from benchmarks.steps import CPU, LR, Contender, require_products
from pyro_vae import VAE, Dims, fit
from pyro_vae.data import Split, Splits
from pyro_vae.estimators import ELBO
from pyro_vae.evaluate import log_px
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.networks import MLP
from pyro_vae.precision import Precision
from pyro_vae.priors import StandardNormal
from pyro_vae.scopes import seeded

LATENT, BATCH, IMAGES, K = 16, 256, 100, 5000


@dataclass(frozen=True)
class Job:
    """Binary training and test data."""

    splits: Splits

    def vae(self) -> VAE:
        """The same first weights each time."""
        dims = Dims(LATENT, self.splits.x_shape)
        network = partial(MLP, hidden=[512], activation=nn.ReLU)
        with seeded(CPU, "benchmark"):
            return VAE(StandardNormal(dims), DiagonalNormal(dims, network), Bernoulli(dims, network))

    @property
    def test(self) -> Split:
        """The images that log p(x) is taken of."""
        return self.splits.test.first(IMAGES)


class Images(Dataset[Tensor]):
    """Pictures that are decoded one by one, as torchvision's MNIST does."""

    def __init__(self, x: Tensor) -> None:
        self.pictures, self.decode = (255 * x[:, 0]).to(torch.uint8).numpy(), ToTensor()

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.pictures)

    def __getitem__(self, i: int) -> Tensor:
        """One picture, decoded."""
        picture: Tensor = self.decode(Image.fromarray(self.pictures[i], mode="L"))
        return picture


def _bound(vae: VAE, x: Tensor) -> float:
    return -ELBO().estimate(vae.model, vae.guide, x).bound.mean().item()


def our_epoch(job: Job, compile: Any = "on", precision: Precision = "fp32") -> Contender:
    """`fit`, the validation data left out of the epoch as the peers leave it."""
    require_products(precision)
    vae = job.vae()
    few = job.splits._replace(valid=job.splits.valid.first(1))
    records = fit(vae, few, epochs=10_000, batch_size=BATCH, compile=compile, precision=precision, optimizer=_adam)
    return Contender(lambda: next(records), lambda: _bound(vae, few.train.x[:1000]))


def stock_epoch(job: Job) -> Contender:
    """The loop of Pyro's example: pictures through a data loader, then ``SVI.step``."""
    vae, x = job.vae(), job.splits.train.x
    pyro.clear_param_store()
    svi = pyro.infer.SVI(vae.model, vae.guide, PyroOptim(torch.optim.Adam, {"lr": LR}), pyro.infer.Trace_ELBO())
    loader = DataLoader(Images(x), batch_size=BATCH, shuffle=True)

    def epoch() -> float:
        return sum(float(svi.step(batch)) for batch in loader)

    return Contender(epoch, lambda: float(svi.evaluate_loss(x[:1000])) / 1000)


def _pythae(job: Job) -> Any:
    """Pythae's VAE with our first weights."""
    models = import_module("pythae.models")
    shape = job.splits.x_shape
    model = models.VAE(models.VAEConfig(input_dim=shape, latent_dim=LATENT, reconstruction_loss="bce"))
    vae = job.vae()
    first, head, back, last = (
        layer
        for part in (vae.posterior, vae.likelihood)
        for layer in part.get_submodule("network").modules()
        if isinstance(layer, nn.Linear)
    )
    pairs = [
        (model.encoder.layers[0][0], first.weight, first.bias),
        (model.encoder.embedding, head.weight[:LATENT], head.bias[:LATENT]),
        (model.encoder.log_var, 2 * head.weight[LATENT:], 2 * head.bias[LATENT:]),  # a variance there, a scale here
        (model.decoder.layers[0][0], back.weight, back.bias),
        (model.decoder.layers[1][0], last.weight, last.bias),
    ]
    with torch.no_grad():
        for layer, weight, bias in pairs:
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    return model


def pythae_epoch(job: Job) -> Contender:
    """Pythae's own trainer."""
    trainers, datasets = import_module("pythae.trainers"), import_module("pythae.data.datasets")
    logging.getLogger("pythae").setLevel(logging.ERROR)
    model, x = _pythae(job), job.splits.train.x
    config = trainers.BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=BATCH, learning_rate=LR, no_cuda=True
    )
    data = datasets.BaseDataset(x, torch.zeros(len(x)))
    trainer = trainers.BaseTrainer(model=model, train_dataset=data, training_config=config)
    trainer.prepare_training()
    trainer.callback_handler.callbacks.clear()
    few = datasets.DatasetOutput(data=x[:1000])

    def loss() -> float:
        with torch.no_grad():
            return float(model(few).loss)

    return Contender(lambda: trainer.train_step(1), loss)


def our_log_px(job: Job, compile: Any = "on", precision: Precision = "fp32") -> Contender:
    """`log_px`, compiled before it is timed."""
    require_products(precision)
    vae = job.vae()

    def run() -> float:
        return -log_px(vae, job.test, K, compile=compile, precision=precision).mean().item()

    return Contender(run, run)


def pythae_log_px(job: Job) -> Contender:
    """Pythae's ``get_nll``."""
    model, x = _pythae(job), job.test.x

    def run() -> float:
        with torch.no_grad():
            return -float(model.get_nll(x, n_samples=K, batch_size=100))

    return Contender(run, run)


_adam = partial(torch.optim.Adam, lr=LR)
EPOCH: dict[str, Callable[[Job], Contender]] = {
    "pyro_vae eager": partial(our_epoch, compile="off"),
    "pyro_vae": our_epoch,
    "pyro_vae bf16": partial(our_epoch, precision="bf16"),
    "Pyro's example loop": stock_epoch,
    "pythae": pythae_epoch,
}
LOG_PX: dict[str, Callable[[Job], Contender]] = {
    "pyro_vae eager": partial(our_log_px, compile="off"),
    "pyro_vae": our_log_px,
    "pyro_vae bf16": partial(our_log_px, precision="bf16"),
    "pythae": pythae_log_px,
}
