"""What a wrong option, class, value or file says: one line, with what was meant, before anything is loaded."""

from __future__ import annotations

import shlex
import sys

import pytest
import yaml

from pyro_vae.app import commands
from pyro_vae.data import Digits

MODULE = """
from pyro_vae import Prior

class Mine(Prior):
    def __init__(self, dims, width: int = 3, name: str = "a"):
        raise AssertionError("built")
"""
LINES = {
    # options of the wrong level
    "train --guide.hidden [3]": "--guide.hidden: DiagonalNormal has no option hidden; did you mean --guide.network.hidden?",
    "train --hidden [3]": "did you mean --guide.network.hidden or --likelihood.network.hidden?",
    "train --K 5": "--K: there is no such option; did you mean --estimator.K?",
    "train --lr 3": "--lr: there is no such option; did you mean --optimizer.lr?",
    "train --learning_rate 3": "did you mean --optimizer.lr?",
    "train --beta 4": "did you mean --objective.beta?",
    "train --latent.x 3": "--latent takes a value and has no options",
    "autoencoder --guide.hidden [3]": "did you mean --guide.network.hidden?",
    # misspelled options
    "train --latents 3": "--latents: there is no such option; did you mean --latent?",
    "train --estimator.k 5": "--estimator.k: ELBO has no option k; did you mean --estimator.K?",
    "train --epocs 3": "did you mean --epochs?",
    "train --batch 20": "did you mean --batch_size?",
    "train --batch-size 20": "did you mean --batch_size?",
    "train --guide.network.hiden [3]": "did you mean --guide.network.hidden?",
    "train --objective.warmup 4": "did you mean --objective.warm_up?",
    "train --data.validation 5": "Digits has no option validation; did you mean --data.valid?",
    "train --prior VampPrior --prior.component 5": "did you mean --prior.components?",
    "train --guide SemiAmortized --guide.guide LowRankNormal --guide.guide.ranks 3": "did you mean --guide.guide.rank?",
    "compare-parts --prior StandardNormal": "an option of train, and not of this command; did you mean --priors?",
    "compare-parts --priors '[{class_path: VampPrior, init_args: {componets: 5}}]'": "did you mean --priors[0].components?",
    "compare-estimators training --particle [3]": "did you mean --particles?",
    "compare-estimators gradients --epochs 3": "--epochs: this is an option of train, and not of this command",
    "compare-estimators gradients --estimators '[IWAE, {class_path: IWAE, init_args: {slt: true}}]'": "estimators[1].stl?",
    # options of other classes of the slot
    "train --prior.components 5": "StandardNormal has no option components; MixtureOfNormals and VampPrior have it: --prior",
    "train --components 5": "MixtureOfNormals and VampPrior have it",
    "train --data MNIST --data.path x": "MNIST has no option path; Arrays has it: --data Arrays --data.path ...",
    "train --optimizer.momentum 0.9": "Adam has no option momentum; Muon, RMSprop and SGD have it",
    "train --schedule.gamma 0.1": "name one with --schedule CLASS (known: CyclicLR, ExponentialLR, MultiStepLR, StepLR",
    "train --guide.network.width 3": "MLP has no option width. It has hidden, activation, init",
    "train --guide.network.hidden '&a [*a]'": "--guide.network.hidden: the aliases (&, *) in &a [*a] stand for more than",
    # classes
    "train --prior StandardNorml": "there is no class of that name. Did you mean StandardNormal?",
    "train --prior DiagonalNormal": "DiagonalNormal goes with --guide",
    "train --prior pyro_vae.priors.StandardNorml": "did you mean pyro_vae.priors.StandardNormal?",
    "train --prior mine.Mien": "there is no class or function Mien in mine",
    "train --prior mine.Mine --prior.witdh 3": "did you mean --prior.width?",
    "train --guide.network MPL": "Did you mean MLP?",
    "train --figures [Sample]": "Did you mean Samples?",
    "train --model TwoLayers": "Did you mean TwoLayer?",
    "train --guide.network.activation Tahn": "Did you mean Tanh?",
    "compare-parts --guides [DiagonalNorml]": "Did you mean DiagonalNormal?",
    "trian": "did you mean train?",
    # values
    "train --latent": "--latent: expected a value behind it",
    "train --latent --epochs 3": "--latent: expected a value behind it, got --epochs",
    "train -latent 3": "options begin with two dashes: --latent",
    "train latent=3": "expected an option, such as --latent",
    "train --guide.network.hidden 3 4": "4: expected an option",
    "train --latent null": "--latent: expected a whole number, got null",
    "train --latent 2.5": "--latent: expected a whole number, got 2.5",
    "train --latent nan": "--latent: expected a whole number",
    "train --optimizer.lr null": "--optimizer.lr: expected a number, got null",
    "train --optimizer.lr nan": "--optimizer.lr: expected a finite number, got nan",
    "train --clip_norm inf": "--clip_norm: expected a finite number, got inf",
    "train --latent 100000000000000000": "--latent: expected a whole number up to 2^53",
    "train --lr_phi x": "--lr_phi: expected a number, got 'x'",
    "train --clip_norm nan": "--clip_norm: expected a finite number, got nan",
    "train --guide.network.hidden [3,null]": "--guide.network.hidden[1]: expected a whole number, got null",
    "train --guide.network.hidden 3": "--guide.network.hidden: expected a list, got 3",
    "train --compile yes": "--compile: expected one of auto, on, off, got 'yes'",
    "train --data.binarize foo": "--data.binarize: expected one of dynamic, fixed, none, got 'foo'",
    "train --metrics TestBound": "--metrics: expected a list, such as '[TestBound]', got TestBound",
    "train --callbacks null": "--callbacks: expected a list of classes (LowerTemperature), got null",
    "train --prior null": "--prior: expected the name of a class (AutoregressiveBernoulli,",
    "train --prior mine.Mine --prior.width null": "--prior.width: expected a whole number, got null",
    "train --data Arrays": "--data.path: Arrays needs this option",
    "compare-estimators gradients --batch null": "--batch: expected a whole number, got null",
    "compare-estimators gradients --particles [1,null]": "--particles[1]: expected a whole number, got null",
    # files
    "train --config none.yaml": "config: none.yaml: there is no such file",
    "train --config folder": "config: folder is a folder, and no file: name the file in it, folder/config.yaml",
    "train --config latin.yaml": "not saved in UTF-8 (byte 0xe9",
    "train --config utf16.yaml": "utf16.yaml: saved in UTF-16: save it in UTF-8",
    "train --config binary.yaml": "not saved in UTF-8",
    "train --config empty.yaml": "expected options by name, such as latent: 8, got nothing",
    "train --config list.yaml": "expected options by name, such as latent: 8, got a list",
    "train --config tab.yaml": "tab.yaml, line 2, column 1: Problems parsing config",
    "train --config level.yaml": "level.yaml, line 5: guide.hidden: DiagonalNormal has no option hidden; did you mean "
    "guide.network.hidden?",
    "train --config twice.yaml": "twice.yaml, line 2: latent stands there twice",
    "train --config null.yaml": "null.yaml, line 3: batch_size: expected a whole number, got null",
    "train --config class.yaml": "class.yaml, line 2: prior: StandardNorml: there is no class of that name. Did you mean",
    "train --config other.yaml": "other.yaml, line 3: prior.components: StandardNormal has no option components; "
    "MixtureOfNormals and VampPrior have it: give prior that class_path",
    "compare-parts --config parts.yaml": "parts.yaml, line 5: priors[1].componets: VampPrior has no option componets",
}  # fmt: skip
FILES = {
    "latin.yaml": b"latent: 3 # caf\xe9\n",
    "utf16.yaml": "latent: 3\n".encode("utf-16"),
    "binary.yaml": bytes(range(250, 100, -1)),
    "empty.yaml": b"",
    "list.yaml": b"- 1\n",
    "tab.yaml": b"guide:\n\tclass_path: x\n",
    "level.yaml": b"latent: 3\nguide:\n  class_path: DiagonalNormal\n  init_args:\n    hidden: [3]\n",
    "twice.yaml": b"latent: 3\nlatent: 4\n",
    "null.yaml": b"# how\n\nbatch_size: null\n",
    "class.yaml": b"prior:\n  class_path: StandardNorml\n",
    "other.yaml": b"prior:\n  init_args:\n    components: 3\n",
    "parts.yaml": b"priors:\n- StandardNormal\n- class_path: VampPrior\n  init_args:\n    componets: 5\n",
    "folder/config.yaml": b"latent: 3\n",
    "bom.yaml": b"\xef\xbb\xbflatent: 3\n",
    "mine.py": MODULE.encode(),
}


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """Runs a command line in a folder with the files above, where no data can be loaded: the exit code, and what is told."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *sys.path])
    monkeypatch.setattr("sys.argv", ["pyro-vae"])
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)

    def load(self):
        raise AssertionError("loaded")

    monkeypatch.setattr(Digits, "load", load)

    def run(line: str) -> tuple[int, str, str]:
        code = 0
        try:
            commands.main(shlex.split(line))
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, " ".join(err.split())

    yield run
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("line", LINES)
def test_a_wrong_line_says_what_was_meant(told, line, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, out, err = told(line)
    assert code == 2, err
    assert LINES[line] in err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert not out
    after = [path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts]
    assert sorted(after) == before


@pytest.mark.parametrize(
    "line",
    [
        "train --latent 3 --guide.network.hidden [] --optimizer.lr 1e-3 --objective.noise false --compile on --lr_phi null",
        "train --config bom.yaml --latent=4",
        "train --schedule null --likelihood null --model null --out 5 --device cpu",
        "train --prior mine.Mine --prior.width 4",
        "train --guide.network.activation torch.nn.Softplus --guide.network.init torch.nn.init.kaiming_normal_",
        "train --guide.network.init null --likelihood Normal --likelihood.network.init=null --guide.network.hidden [3]",
        "train --estimator Stock --estimator.elbo pyro.infer.RenyiELBO --estimator.options '{alpha: 0.5}'",
        "train --model TwoLayer --model.top 5 --model.between FullRankNormal --guide.network GatedMLP",
        "train --optimizer SGD --optimizer.momentum 0.9 --schedule StepLR --schedule.step_size 3",
        "compare-parts --priors '[StandardNormal, {class_path: VampPrior, init_args: {components: 5}}]' --seeds [0,1]",
        "compare-estimators gradients --particles [1,2] --batch 3 --run null",
    ],
)
def test_a_right_line_is_left_alone(told, line):
    code, out, err = told(f"{line} --print_config")
    assert (code, err) == (0, "")
    assert "latent: " in out


def test_null_is_nothing_in_options_of_classes_too(told):
    code, out, _ = told("train --guide.network.init null --prior Laplace --likelihood Normal --print_config")
    assert code == 0
    config = yaml.safe_load(out)
    assert config["guide"]["init_args"]["network"]["init_args"]["init"] is None
    assert config["likelihood"]["init_args"]["network"]["init_args"]["init"] == "torch.nn.init.xavier_uniform_"


def test_of_an_option_twice_the_last_counts_and_a_line_says_so(told):
    code, out, err = told("train --latent 3 --latent x --latents 3")
    assert code == 2
    assert "--latent stands there twice, with 3 and with x: the last counts" in out
    assert err
    code, out, _ = told("train --latent 3 --latent 4 --print_config")
    assert (code, yaml.safe_load(out)["latent"]) == (0, 4)


def test_a_class_and_a_list_take_the_place_of_those_of_a_file(told, tmp_path):
    """Options of a file's class that the new one has not are left, and a line says which; a list replaces a list whole."""
    (tmp_path / "run.yaml").write_text(
        "prior: {class_path: VampPrior, init_args: {components: 5}}\n"
        "guide: {class_path: LowRankNormal, init_args: {rank: 2, network: {class_path: MLP, init_args: {hidden: [5]}}}}\n"
    )
    words = "train --config run.yaml --prior StandardNormal --guide PerDatum --guide.scale 2"
    code, out, err = told(f"{words} --print_config")
    assert (code, err) == (0, "")
    config = yaml.safe_load(out)
    assert config["prior"] == {"class_path": "pyro_vae.priors.StandardNormal"}
    assert config["guide"]["init_args"] == {"scale": 2.0}
    left = "Not used: prior.components, guide.rank, guide.network of run.yaml: the class that was named "
    assert left in told(f"{words} --data Arrays --data.path nowhere.npy")[1]
    code, out, _ = told("train --config run.yaml --guide DiagonalNormal --prior VampPrior --print_config")
    config = yaml.safe_load(out)
    assert config["guide"]["init_args"]["network"]["init_args"]["hidden"] == [5]
    assert config["prior"]["init_args"]["components"] == 5
    (tmp_path / "many.yaml").write_text(
        "priors:\n- StandardNormal\n- {class_path: VampPrior, init_args: {components: 5}}\n"
    )
    for priors in (["StandardNormal", "Laplace"], ["Laplace"]):
        code, out, err = told(f'compare-parts --config many.yaml --print_config --priors "[{", ".join(priors)}]"')
        assert (code, err) == (0, "")
        assert [each["class_path"].rpartition(".")[2] for each in yaml.safe_load(out)["priors"]] == priors
