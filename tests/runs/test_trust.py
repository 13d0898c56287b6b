"""Nothing that a file names is imported or called unless it is a part for its slot."""

import sys
from pathlib import Path

import pytest
import torch
import yaml

from pyro_vae import VAE, load, save
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.parts import Dims
from pyro_vae.priors import StandardNormal

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


@pytest.mark.parametrize("option", ["--prior", "--guide.network", "--optimizer", "--schedule", "--metrics", "--data"])
@pytest.mark.parametrize("path", ["os.system", "runpy.run_path", "antigravity.fly", "builtins.eval"])
def test_the_command_line_and_config_files_neither(tmp_path, script, option, path):
    value = f"[{path}]" if option == "--metrics" else path
    named: object = {"class_path": path, "init_args": {}}
    for key in reversed(option[2:].split(".")[1:]):
        named = {"class_path": "pyro_vae.guides.DiagonalNormal", "init_args": {key: named}}
    slot = option[2:].partition(".")[0]
    (tmp_path / "given.yaml").write_text(yaml.safe_dump({slot: [named] if slot == "metrics" else named}))
    for given in ([option, value], ["--config", "given.yaml"]):
        code, _, errors = script("train", "--epochs", "1", *given)
        assert code == 2
        assert path in errors
        assert "Traceback" not in errors
    assert "antigravity" not in sys.modules


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
