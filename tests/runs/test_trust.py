"""Nothing that a file names is imported or called unless it is a part for its slot."""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import get_args, get_origin

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

import pyro_vae
from pyro_vae import VAE, load, save
from pyro_vae.app.comparisons.gradients import gradients
from pyro_vae.app.comparisons.parts import compare_parts
from pyro_vae.app.setting import Setting
from pyro_vae.app.train import train
from pyro_vae.construction import _hints, make
from pyro_vae.files import digest, tensor_digest
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.models import ModelSpec
from pyro_vae.networks import NetworkFactory
from pyro_vae.parts import Dims
from pyro_vae.priors import StandardNormal
from pyro_vae.runs.weights import read_weights, write_weights
from pyro_vae.training import TrainingPlan
from pyro_vae.trust import Trust

SLOTS = {
    "prior": ("prior",),
    "guide": ("guide",),
    "likelihood": ("likelihood",),
    "model": ("model",),
    "guide.network": ("guide", "init_args", "network"),
    "guide.network.activation": ("guide", "init_args", "network", "init_args", "activation"),
    "guide.network.init": ("guide", "init_args", "network", "init_args", "init"),
    "likelihood.network": ("likelihood", "init_args", "network"),
    "likelihood.network.init": ("likelihood", "init_args", "network", "init_args", "init"),
}
CALLS = {
    "os.system": {"command": "touch {mark}"},
    "posix.system": {"command": "touch {mark}"},
    "subprocess.run": {"args": ["touch", "{mark}"]},
    "subprocess.Popen": {"args": ["touch", "{mark}"]},
    "builtins.eval": {"source": "open('{mark}', 'w')"},
    "builtins.exec": {"source": "open('{mark}', 'w')"},
    "runpy.run_path": {"path_name": "{evil}"},
    "importlib.import_module": {"name": "evil_parts"},
    "evil_parts.Prior": {},
    "torch.hub.load": {"repo_or_dir": "{mark}", "model": "x"},
    "torch.nn.modules.module.os.system": {"command": "touch {mark}"},
    "pyro_vae.runs.folder.os.system": {"command": "touch {mark}"},
    "pyro_vae.runs.save": {"folder": "{mark}"},
}


@pytest.fixture
def saved(tmp_path):
    """A saved model, its configuration, and a module whose import writes a file."""
    torch.manual_seed(0)
    dims = Dims(2, (4,))
    save(VAE(StandardNormal(dims), DiagonalNormal(dims), Bernoulli(dims)), tmp_path / "run")
    mark = tmp_path / "mark"
    (tmp_path / "evil_parts.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    return tmp_path / "run", mark


def told(value, where: dict[str, str]):
    if isinstance(value, list):
        return [told(each, where) for each in value]
    return value.format(**where)


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("slot", SLOTS)
def test_load_calls_and_imports_nothing_that_is_no_part(saved, monkeypatch, slot, path):
    folder, mark = saved
    monkeypatch.syspath_prepend(str(folder.parent))
    where = {"mark": str(mark), "evil": str(folder.parent / "evil_parts.py")}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    place = config
    for key in SLOTS[slot][:-1]:
        place = place.setdefault(key, {}) if isinstance(place.get(key), dict) else place
    place[SLOTS[slot][-1]] = {
        "class_path": path,
        "init_args": {name: told(value, where) for name, value in CALLS[path].items()},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"config.yaml|not allowed"):
        load(folder)
    assert not mark.exists()
    assert "evil_parts" not in sys.modules


@pytest.mark.parametrize("path", ["os.system", "subprocess.run", "builtins.eval", "runpy.run_path"])
@pytest.mark.parametrize("trust", ["os", "evil_parts", ("subprocess", "builtins", "runpy")])
def test_trust_in_a_module_does_not_make_a_function_a_part(saved, trust, path):
    folder, mark = saved
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["prior"] = {"class_path": path, "init_args": {"command": f"touch {mark}"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"prior|config"):
        load(folder, trust=trust)
    assert not mark.exists()


HARMFUL = ["os.system", "runpy.run_path", "antigravity.fly", "builtins.eval"]
LISTS = ["--metrics", "--figures", "--callbacks", "--trackers"]
SINGLE = [
    "--guide.network",
    "--likelihood",
    "--model",
    "--estimator",
    "--optimizer",
    "--schedule",
    "--data",
    "--objective",
]


@pytest.mark.parametrize(
    ("option", "path"), [("--prior", path) for path in HARMFUL] + [(option, "os.system") for option in SINGLE + LISTS]
)
def test_the_command_line_and_config_files_neither(tmp_path, script, option, path):
    value = f"[{path}]" if option in LISTS else path
    named: object = {"class_path": path, "init_args": {}}
    for key in reversed(option[2:].split(".")[1:]):
        named = {"class_path": "pyro_vae.guides.DiagonalNormal", "init_args": {key: named}}
    slot = option[2:].partition(".")[0]
    (tmp_path / "given.yaml").write_text(yaml.safe_dump({slot: [named] if option in LISTS else named}))
    for given in ([option, value], ["--config", "given.yaml"]):
        code, _, errors = script("train", "--epochs", "1", *given)
        assert code == 2
        assert path in errors
        assert "Traceback" not in errors
    assert "antigravity" not in sys.modules


Fill = Callable[[object], dict[str, object]]


def places() -> dict[str, Fill]:
    """Every argument of every constructor that a configuration can lead to, found by their types.

    Each with the function that puts a value there: as it is, in a list, and in a dictionary.
    """
    found: dict[str, Fill] = {}
    seen: set[type] = set()

    def visit(owner: Callable[..., object], put: Callable[[str, object], dict[str, object]]) -> None:
        hints = _hints(owner)
        for name in signature(owner).parameters:
            where = f"{owner.__module__}.{owner.__qualname__}.{name}"
            found[where] = partial(put, name)
            found[f"{where}[]"] = lambda value, name=name: put(name, [value])
            found[f"{where}{{}}"] = lambda value, name=name: put(name, {"a": value})
            listed = get_origin(hints.get(name)) is Sequence
            for kind in below(hints.get(name)):
                if kind in seen or not Trust().defines(kind):
                    continue
                seen.add(kind)
                path = f"{kind.__module__}.{kind.__qualname__}"

                def inner(option: str, value: object, name=name, path=path, listed=listed) -> dict[str, object]:
                    described = {"class_path": path, "init_args": {option: value}}
                    return put(name, [described] if listed else described)

                visit(kind, inner)

    def below(hint: object) -> list[type]:
        """The classes that a type asks for, and all that are derived from them."""
        if get_origin(hint) is Callable:
            return below(get_args(hint)[1])
        if not isinstance(hint, type):
            return [kind for each in get_args(hint) for kind in below(each)]
        kinds = [hint] if hint.__module__.startswith(("pyro_vae", "torch.optim")) else []
        return kinds + [each for kind in kinds for sub in type.__subclasses__(kind) for each in below(sub)]

    for owner in OWNERS:
        visit(owner, lambda name, value: {name: value})
    return found


OWNERS = (ModelSpec, TrainingPlan, Setting, train, compare_parts, gradients)


@pytest.mark.parametrize(
    "harm",
    [
        {"class_path": "os.system", "init_args": {"command": "touch {mark}"}},
        {"class_path": "evil_parts.run"},
        "evil_parts.run",
        {"class_path": "pyro_vae.runs.Run", "init_args": {"folder": "{mark}", "config": "{{}}"}},
    ],
    ids=str,
)
def test_no_argument_of_any_constructor_runs_anything(saved, monkeypatch, harm):
    """A thousand places: what is named there is neither imported nor called."""
    folder, mark = saved
    monkeypatch.syspath_prepend(str(folder.parent))
    harm = yaml.safe_load(yaml.safe_dump(harm).format(mark=mark))
    tried = places()
    assert len(tried) > 500
    for where, fill in tried.items():
        for name, value in fill(harm).items():
            owner = next(each for each in OWNERS if name in signature(each).parameters)
            default = signature(owner).parameters[name].default
            with suppress(ValueError, TypeError):
                make(value, _hints(owner)[name], name, Trust(folder=folder), default)
            assert not mark.exists(), where
            assert "evil_parts" not in sys.modules, where


@pytest.mark.parametrize("trust", [Trust(folder=Path(pyro_vae.__file__).parents[1]), Trust(("pyro_vae",))], ids=str)
@pytest.mark.parametrize("path", ["pyro_vae.runs.Run", "pyro_vae.files.read_text", "pyro_vae.app.console.fail"])
def test_this_project_is_not_ones_own_where_one_stands_in_its_folder(tmp_path, trust, path):
    """Its functions and classes fill only the slots whose base they have."""
    given = {"class_path": path, "init_args": {"folder": str(tmp_path / "mark"), "config": "prior: x"}}
    for harm in (given, path):
        with pytest.raises(ValueError, match="not allowed here: expected a function of"):
            make({"class_path": "pyro_vae.networks.MLP", "init_args": {"init": harm}}, NetworkFactory, "network", trust)
    assert not (tmp_path / "mark").exists()


WRITES = "open({mark!r}, 'w').close()\nfrom pyro_vae.priors import StandardNormal\n\n\nclass Mine(StandardNormal):\n    pass\n"


@pytest.mark.parametrize(
    ("file", "prior", "told"),
    [
        ("theirs/parts.py", "theirs.parts.Mine", "theirs in it is a folder without __init__.py"),
        ("theirs/run/parts.py", "theirs.run.parts.Mine", "theirs in it is a folder without __init__.py"),
        ("theirs/__init__.py", "theirs.Mine", "the package theirs in it holds the file that names it"),
        ("mine/theirs/parts.py", "mine.theirs.parts.Mine", "there is no class or function Mine in mine.theirs.parts"),
        ("colorsys.py", "colorsys.Mine", "colorsys.py in it has the name of an installed module"),
        ("mine.py", "mine.os.system", "there is no class or function system in mine.os"),
        ("mine.py", "..mine.Mine", "is no import path of a class or a function"),
        ("mine.py", "numpy.Mine", "numpy.Mine is not allowed here"),
    ],
)
def test_what_came_with_a_configuration_is_not_imported(tmp_path, script, file, prior, told):
    """Only a file in the folder that one stands in, or a package of one's own in it, and no name of an installed module."""
    mark = tmp_path / "mark"
    (tmp_path / "theirs" / "run").mkdir(parents=True)
    if file.startswith("mine/"):
        (tmp_path / "mine" / "theirs").mkdir(parents=True)
        (tmp_path / "mine" / "__init__.py").touch()
    (tmp_path / file).write_text(WRITES.format(mark=str(mark)))
    (tmp_path / "theirs" / "run" / "config.yaml").write_text(yaml.safe_dump({"prior": {"class_path": prior}}))
    code, _, errors = script("train", "--config", "theirs/run/config.yaml", "--print_config")
    assert code == 2
    assert told in " ".join(errors.split())
    assert not mark.exists() or file == "mine.py"


@pytest.mark.parametrize("file", ["mine.py", "mine/__init__.py"])
def test_files_and_packages_of_ones_own_are_taken(tmp_path, script, file):
    (tmp_path / "mine").mkdir()
    (tmp_path / file).write_text(WRITES.format(mark=str(tmp_path / "mark")))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.yaml").write_text(yaml.safe_dump({"prior": {"class_path": "mine.Mine"}}))
    assert script("train", "--config", "theirs/config.yaml", "--print_config")[0] == 0


def test_no_file_of_the_current_folder_takes_the_place_of_an_installed_module(tmp_path, script, monkeypatch):
    (tmp_path / "colorsys.py").write_text("raise SystemExit(3)")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))  # as python -m does
    assert script("train", "--print_config")[0] == 0
    assert Path(import_module("colorsys").__file__).parent != tmp_path


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--config", "its aliases (&, *) stand for more than"),
        ("--conf", "--conf"),
        ("--prior", "bomb.yaml is not allowed here"),
        ("--guide.network", "bomb.yaml is not allowed here"),
        ("--objective", "bomb.yaml is not allowed here"),
        ("--metrics", "expected a list"),
    ],
)
def test_a_small_file_that_stands_for_billions_of_values_is_refused(tmp_path, script, option, told):
    """By no option is it read."""
    (tmp_path / "bomb.yaml").write_text(BOMB)
    code, _, errors = script("train", option, "bomb.yaml", "--print_config")
    assert code == 2
    assert told in " ".join(errors.split())


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['touch mark']", "prior: !!python/name:os.system"])
def test_yaml_makes_no_objects(tmp_path, script, saved, text):
    (tmp_path / "given.yaml").write_text(text)
    assert script("train", "--config", "given.yaml")[0] == 2
    folder, _ = saved
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml: damaged, or no YAML"):
        load(folder)
    assert not (tmp_path / "mark").exists()


def forged(folder: Path, change: dict[str, object] | None = None, **tensors: torch.Tensor) -> None:
    """Another description or other weights, with digests that fit: nobody can tell that they were not written by a run."""
    config = yaml.safe_load((folder / "config.yaml").read_text()) | (change or {})
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    kept = read_weights(folder / "model.safetensors")
    write_weights(folder / "model.safetensors", {**kept.tensors, **tensors}, kept.dims, None, digest(config))


@pytest.mark.parametrize(
    "prior",
    [
        {"class_path": "pyro_vae.priors.MixtureOfNormals", "init_args": {"components": 10**14}},
        {"class_path": "pyro_vae.priors.VampPrior", "init_args": {"components": 10**14}},
    ],
)
def test_a_layer_of_any_size_is_compared_with_the_weights_before_there_is_memory_for_it(saved, prior):
    folder, _ = saved
    forged(folder, {"prior": prior})
    with pytest.raises(ValueError, match=r"safetensors: Error\(s\) in loading state_dict"):
        load(folder)


def test_weights_have_the_types_of_the_models_numbers(saved):
    """All in double precision is a model that was trained so; one alone, half precision or whole numbers are none."""
    folder, _ = saved
    model = load(folder)
    name, value = next(iter(model.named_parameters()))
    for wrong in (torch.float64, torch.float16, torch.int64, torch.bool):
        forged(folder, **{name: value.detach().to(wrong)})
        with pytest.raises(ValueError, match=r"safetensors: expected weights of the model's types of numbers"):
            load(folder)
    forged(folder, **{each: kept.double() for each, kept in model.state_dict().items()})
    assert load(folder).state_dict()[name].dtype == torch.float64


SIZE = [0, -1, "16", 1.5, True, [], 10**400]
BAD_SIZES = {
    "latent": [*SIZE, None, ...],
    "x_shape": [*SIZE, [4, -1], [4.0], None, ...],
    "x_scale": [0, 5e-324, -1.0, "16", float("nan"), float("inf"), True, [], 10**400, None, ...],
    "standardized": [0, "true", None, ...],
    "classes": [*SIZE, ...],
    "data": [*SIZE, 10**15, 2**62, ...],
    "epoch": [*SIZE, ...],
    "format": [1, 3, "2", None, ...],
    "slots": [2, None, ..., "0" * 64],
}


@pytest.mark.parametrize("name", BAD_SIZES)
def test_a_wrong_size_beside_the_weights_is_named(saved, name):
    """With a digest that fits it. ``...`` stands for a size that is missing."""
    folder, _ = saved
    file = folder / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        kept, tensors = (
            json.loads(opened.metadata()["pyro_vae"]),
            {each: opened.get_tensor(each) for each in opened.keys()},  # noqa: SIM118
        )
    del kept["sha256"]
    for value in BAD_SIZES[name]:
        sizes = kept | {name: value}
        if value is ...:
            del sizes[name]
        text = json.dumps(sizes | {"sha256": tensor_digest(sizes, tensors)})
        save_file(tensors, file, {"pyro_vae": text})
        with pytest.raises(
            ValueError, match=r"description of the model" if value == "0" * 64 else f"{name}|JSON has no"
        ):
            load(folder)


def test_a_flipped_bit_is_seen_wherever_it_is(saved):
    folder, _ = saved
    file = Path(folder / "model.safetensors")
    good = file.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    generator = torch.Generator().manual_seed(0)
    places = [*range(8 * 8)]
    places += torch.randint(64, 8 * header, (60,), generator=generator).tolist()
    places += torch.randint(8 * header, 8 * len(good), (60,), generator=generator).tolist()
    for bit in places:
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bytes(bad))
        with pytest.raises(ValueError, match="safetensors"):
            load(folder)
    file.write_bytes(good)
    load(folder)
