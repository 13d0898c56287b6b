"""Real data, batched by index: held in memory on one device, or read from a file where they do not fit (`pyro_vae.stored`).

A data set is one class with one method, `Data.load`, that returns `Splits`: training, validation and test data. `make_splits`
divides and binarizes. Which data go where, and how they are binarized, is seeded apart from the run's seed.

=============== ==================================================== ==================================
data set        data                                                 source
=============== ==================================================== ==================================
`Digits`        1,797 images of 8×8 counts 0..16                     scikit-learn, nothing is downloaded
`MNIST`         70,000 images of 28×28 gray levels                   torchvision
`FashionMNIST`  70,000 images of 28×28 gray levels                   torchvision
`Dataset`       x, or (x, label), of a data set of PyTorch           any ``torch.utils.data.Dataset``
`Arrays`        tables, and arrays (N, ...) of numbers               .csv, .parquet, .npy and .npz files
=============== ==================================================== ==================================
"""

from pyro_vae.data.arrays import Arrays
from pyro_vae.data.columns import Columns
from pyro_vae.data.digits import Digits
from pyro_vae.data.items import Dataset
from pyro_vae.data.splits import (
    Binarize,
    Data,
    DataLike,
    Split,
    Splits,
    columns_for,
    columns_of,
    make_splits,
    support_of,
)
from pyro_vae.data.torchvision_sets import MNIST, FashionMNIST
from pyro_vae.view import View

__all__ = [
    "MNIST",
    "Arrays",
    "Binarize",
    "Columns",
    "Data",
    "DataLike",
    "Dataset",
    "Digits",
    "FashionMNIST",
    "Split",
    "Splits",
    "View",
    "columns_for",
    "columns_of",
    "make_splits",
    "support_of",
]
