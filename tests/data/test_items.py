"""Items of a map-style data set of PyTorch as data: in memory or at each use, by any number of workers, with the same bits."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as Items
from torch.utils.data import IterableDataset, TensorDataset

from pyro_vae import ModelSpec, fit, stored
from pyro_vae.data import Dataset, Splits
from pyro_vae.guides import DiagonalNormal
from pyro_vae.networks import MLP
from pyro_vae.stored import Stored

SPEC = ModelSpec(guide=partial(DiagonalNormal, network=partial(MLP, hidden=[6])), latent=2)


class Noise(Items):
    """Items that are drawn at random, each with a label."""

    def __len__(self):
        return 200

    def __getitem__(self, i):
        return torch.randn(3) + random.random() + np.random.rand(), i % 4  # noqa: NPY002


class Given(Items):
    """Items of a list; what is an error is raised."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        if isinstance(self.items[i], Exception):
            raise self.items[i]
        return self.items[i]


class Endless(IterableDataset):
    def __iter__(self):
        return iter(range(3))


def trained(data: Splits) -> Tensor:
    model = SPEC.build(data, 0)
    list(fit(model, data, epochs=2, batch_size=50))
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def test_bits_depend_neither_on_workers_nor_on_where_items_are(monkeypatch):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    # The type checker of the tests draws from `random` itself.
    found = [Dataset(Noise, valid=40, test=40, workers=workers).load() for workers in (0, 2)]
    monkeypatch.setattr(stored, "HELD", 0)
    found += [Dataset(Noise, valid=40, test=40, workers=workers, in_memory=False).load() for workers in (0, 2)]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert [isinstance(each.train.x, Stored) for each in found] == [False, False, True, True]
    assert found[0].classes == 4
    first, *others = map(trained, found)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([], r"^of: Given is empty"),
        ([np.zeros(3), np.zeros(4)], r"^Given: item 1 is \[4\] of float64, and item 0 is \[3\] of float64"),
        ([np.zeros(3), (np.zeros(3), 1)], r"^Given: item 1 is \[3\] of float64 with a label, and item 0 is"),
        ([np.zeros(3), OSError("no file")], r"^Given: item 1 cannot be read \(OSError: no file\)"),
        ([(Image.new("L", (4, 4)), 1)], r"^Given: item 0 is a Image; .* transform=torchvision.transforms.ToTensor\(\)"),
        ([{"x": np.zeros(3)}], r"^Given: item 0 is a dict; expected x, an array or a tensor of numbers, or a pair"),
        ([(np.zeros(3), "a")], r"^Given: the label of item 0 is a str; expected a number"),
        ([np.array(["a"])], r"^Given: item 0 is an array of <U1 and shape \(1,\)"),
        ([np.zeros(3), np.array([0, np.inf, 0])], r"1 of 6 values are infinite, the first in x\[:, 1\]"),
    ],
    ids=["empty", "shapes", "a label", "raises", "PIL", "dict", "text", "texts", "infinite"],
)
def test_what_is_no_item_is_told_with_its_index(items, told, workers):
    with pytest.raises(ValueError, match=told):
        Dataset(partial(Given, items), valid=1, test=1, workers=workers).load()


def test_what_is_no_data_set_is_told():
    with pytest.raises(ValueError, match=r"^of: expected a data set whose items have an index.* Endless has none"):
        Dataset(Endless).load()
    with pytest.raises(ValueError, match=r"^of: Given cannot be made \(TypeError"):
        Dataset(Given).load()
    with pytest.raises(ValueError, match=r"^workers: expected at least 0, got -1"):
        Dataset(Noise, workers=-1)


def test_a_data_set_of_tensors():
    x, y = torch.rand(30, 4), torch.arange(30) % 2
    data = Dataset(lambda: TensorDataset(x, y), valid=5, test=5).load()
    assert data.classes == 2
    assert data.train.x.shape == (20, 4)


OPTIONS = [
    "--data.valid", "20", "--data.test", "20", "--epochs", "1", "--test_particles", "5", "--figures", "[]",
    "--batch_size", "20",
]  # fmt: skip


def test_by_the_command_line(tmp_path, script):
    (tmp_path / "my_items.py").write_text(
        "import torch\nclass Mine(torch.utils.data.Dataset):\n"
        "    def __init__(self, size: int = 5):\n        self.size = size\n"
        "    def __len__(self):\n        return self.size\n"
        "    def __getitem__(self, i):\n        return torch.randn(3), i % 2\n"
    )
    mine = ["--data", "Dataset", "--data.of", "my_items.Mine", "--data.of.size", "80"]
    code, out, err = script("train", *mine, *OPTIONS, "--out", "mine")
    assert code == 0, out + err
    assert "Dataset: 40 train, 20 validation, 20 test, each 3" in out
    code, out, err = script("train", "--config", "mine/config.yaml", "--out", "again")
    assert code == 0, out + err
    assert (tmp_path / "mine" / "result.json").read_text() == (tmp_path / "again" / "result.json").read_text()


def test_torchvision_by_the_command_line(script):
    fake = [
        "--data", "Dataset", "--data.of", "torchvision.datasets.FakeData", "--data.of.size", "80",
        "--data.of.image_size", "[1, 8, 8]",
    ]  # fmt: skip
    code, _, err = script("train", *fake, *OPTIONS, "--out", "no")
    assert code != 0
    assert "item 0 is a Image" in err
    transform = ["--data.of.transform", "torchvision.transforms.ToTensor"]
    code, out, err = script("train", *fake, *transform, *OPTIONS, "--out", "fake")
    assert code == 0, out + err
    assert "40 train, 20 validation, 20 test, each 1×8×8" in out


@pytest.mark.parametrize("path", ["torchvision.datasets.LSUN", "os.system", "torchvision.io.read_file", "torch.load"])
def test_what_is_not_trusted_is_refused(script, path):
    code, _, err = script("train", "--data", "Dataset", "--data.of", path)
    assert code != 0
    assert "is not allowed here" in err or "not allowed" in err, err
