"""Configurations: YAML and command line through one parser, everything checked, every default filled in."""

from __future__ import annotations

from pathlib import Path

import jsonargparse
import pytest
import yaml

from tripletmas.basics.version import __version__, versions
from tripletmas.runs.arguments import presets
from tripletmas.runs.configuration import parse, resolve

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def config(*arguments: str) -> dict:
    return parse(arguments)[0]


def test_every_default_is_filled_in():
    found = config()
    assert list(found) == ["data", "model", "loss", "strategy", "training", "gallery", "objective", "seed", "device"]
    assert found["gallery"] == {"compensate": "linear", "images": None, "invert": False}
    assert found["data"]["name"] == "digits"
    of_any = dict.fromkeys(("weights", "weights_sha256", "mean", "deviation", "lora"))
    assert found["model"] == {"name": "mlp", "dim": 32, "hidden": [256, 256], **of_any}
    assert (found["loss"]["name"], found["loss"]["mining"]) == ("triplet", "batch_hard")
    chosen = {"strength": 0.3, "decay": 1.0, "relative": True, "output": "embedding", "batch_gradients": None}
    assert found["strategy"] == {"name": "mas", **chosen}
    assert (found["training"]["epochs"], found["seed"], found["device"]) == (15, 0, "auto")
    assert "seed" not in found["training"]


def test_the_model_goes_with_the_data():
    assert config("--data", "mnist")["model"]["name"] == "conv4"
    assert config("--data", "mnist", "--model", "mlp")["model"]["name"] == "mlp"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--strategy", "mas", "--strategy.strength", "2"],
        ["--strategy=mas", "--strategy.strength=2"],
        ["--strategy.name", "mas", "--strategy.strength=2.0"],
    ],
)
def test_ways_to_write_an_option(arguments):
    assert config(*arguments)["strategy"]["strength"] == 2.0


@pytest.mark.parametrize("text", ["strategy: {name: mas, strength: 2}", "strategy: mas\ntraining: {epochs: 2}"])
def test_ways_to_write_a_part(text, file):
    assert config("--config", file(text))["strategy"]["name"] == "mas"
    assert config(f"--config={file(text)}") == config("--config", file(text)) == resolve(yaml.safe_load(text))


def test_the_command_line_counts_more_than_the_file_wherever_it_stands(file):
    path = file("strategy: {name: mas, strength: 2}\ntraining: {epochs: 3, lr: 1e-2}\nseed: 5")
    for arguments in (["--config", path, "--training.epochs", "9"], ["--training.epochs", "9", "--config", path]):
        found = config(*arguments)
        assert (found["training"]["epochs"], found["training"]["lr"], found["seed"]) == (9, 0.01, 5)
        assert found["strategy"]["strength"] == 2


@pytest.mark.parametrize(("given", "found"), [("0.01x", "0.01x"), ("1e-5", 1e-5), ("null", None)])
def test_a_rate_of_the_backbone_is_a_number_or_a_multiple(given, found, file):
    assert config("--training.backbone_lr", given)["training"]["backbone_lr"] == found
    assert config("--config", file(f"training: {{backbone_lr: {given}}}"))["training"]["backbone_lr"] == found
    whole = yaml.safe_load(yaml.safe_dump(config("--training.backbone_lr", given)))
    assert resolve(whole)["training"]["backbone_lr"] == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "1:30"], "--seed has 1:30, which YAML takes for 90: write the number that is meant"),
        (["--seed=010"], "--seed has 010, which YAML takes for 8"),
        (["--model", "mlp", "--model.hidden", "[16, 010]"], r"--model\.hidden has 010, which YAML takes for 8"),
    ],
)
def test_a_number_that_would_be_read_as_another_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        config(*arguments)
    assert config("--data", "folder", "--data.root", "010")["data"]["root"] == "010"  # a name stays what it is


def test_another_name_starts_from_its_own_defaults(file):
    path = file("strategy: {name: mas, strength: 2}\nloss: {name: triplet, margin: 0.5}")
    found = config("--config", path, "--strategy", "finetune", "--loss", "contrastive")
    assert found["strategy"] == {"name": "finetune"}
    assert found["loss"]["name"] == "contrastive"
    assert "margin" not in found["loss"]
    # the same name again keeps the file's options
    assert config("--config", path, "--strategy", "mas")["strategy"]["strength"] == 2


@pytest.mark.parametrize(
    ("arguments", "place", "value"),
    [
        (["--data.tasks", "[3,3,4]"], ("data", "tasks"), [3, 3, 4]),
        (["--data.tasks", "5"], ("data", "tasks"), 5),
        (["--data.tasks", "null"], ("data", "tasks"), None),
        (["--model.hidden", "[64,64]"], ("model", "hidden"), [64, 64]),
        (["--model.hidden", "[]"], ("model", "hidden"), []),
        (["--data.order_seed", "3"], ("data", "order_seed"), 3),
        (["--data", "omniglot", "--data.groups", "[Greek, Korean]"], ("data", "groups"), ["Greek", "Korean"]),
        (["--data", "folder", "--data.root", "123"], ("data", "root"), "123"),
        (["--training.clip", "1e-1"], ("training", "clip"), 0.1),
        (["--training.freeze_batchnorm", "true"], ("training", "freeze_batchnorm"), True),
        (["--strategy.relative=false"], ("strategy", "relative"), False),
        (["--loss", "contrastive", "--loss.pos_margin", "0.25"], ("loss", "pos_margin"), 0.25),
    ],
)
def test_types(arguments, place, value):
    found = config(*arguments)
    assert found[place[0]][place[1]] == value
    assert type(found[place[0]][place[1]]) is type(value)
    # what is written to config.yaml, and what --print_config prints, means the same when it is read back
    assert resolve(yaml.safe_load(yaml.safe_dump(found))) == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "mass"], r"unknown strategy 'mass' \(did you mean 'mas'\?\)"),
        (["--loss", "tripletx"], r"unknown loss 'tripletx' \(did you mean 'triplet'\?\)"),
        (
            ["--model", "resnet81"],
            r"unknown model 'resnet81' \(did you mean 'resnet18'\?\); there are mlp, ",
        ),
        (["--model", "qqq"], r"unknown model 'qqq'; there are mlp, .*timm:NAME, .*path/to/file\.py:FUNCTION"),
        (["--model", "nets.py"], "model 'nets.py' is a file: name the function in it .*as nets.py:make"),
        (["--model", "."], r"\. is no exported model: it has no config\.json"),
        (["--data=folder", "--data.root=x", "--data.size", "0x5"], "--data.size takes sides of 1 pixel .*got '0x5'"),
        (["--data=folder", "--data.root=x", "--data.size=0X20"], "--data.size takes sides of 1 pixel .*got '0X20'"),
        (["--data", "digit"], r"unknown data 'digit' \(did you mean 'digits'\?\)"),
        (["--strategy.strenght", "1"], r"strategy 'mas' has no option 'strenght' \(did you mean 'strength'\?\)"),
        (["--strategy", "finetune", "--strategy.strength", "1"], "strategy 'finetune' has no option 'strength'"),
        (["--training.epoch", "1"], r"unknown option '--training.epoch' \(did you mean '--training.epochs'\?\)"),
        (["--epochs", "1"], "unknown option '--epochs'"),
        (["--sed", "1"], r"unknown option '--sed' \(did you mean '--seed'\?\)"),
        (["digits"], "digits"),
        (["--training.epochs", "many"], "training.epochs.*many"),
        (["--training.schedule", "linear"], "training.schedule.*linear"),
        (["--training.freeze_batchnorm", "perhaps"], "freeze_batchnorm"),
        (["--data.tasks", "[3,x]"], "data.tasks"),
        (["--model.hidden", "64"], "model.hidden"),
        (["--seed", "1.5"], "seed"),
        (["--data", "folder"], "data.root"),
    ],
)
def test_what_is_wrong_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        config(*arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("strategy: {name: mas, strenght: 1}", r"no option 'strenght' \(did you mean 'strength'\?\)"),
        ("strategi: mas", r"unknown option '--strategi' \(did you mean '--strategy"),
        ("trainin: {epochs: 1}", r"unknown option '--trainin.epochs' \(did you mean '--training.epochs'\?\)"),
        ("training: {epochs: many}", "training.epochs"),
        ("strategy: nothing", "unknown strategy 'nothing'"),
        ("- strategy", r"config\.yaml' must hold a mapping such as `strategy: mas`"),
        ("", "must hold a mapping"),
        ("strategy: [", r"config\.yaml' is no YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(text, message, file):
    with pytest.raises(ValueError, match=message):
        config("--config", file(text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"the configuration '.*none\.yaml' cannot be read: No such file"):
        config("--config", str(tmp_path / "none.yaml"))
    with pytest.raises(ValueError, match="cannot be read"):
        config("--config")


def test_the_options_of_the_command_are_apart(file):
    extra = jsonargparse.ArgumentParser(add_help=False)
    extra.add_argument("--out", type=str, default=None)
    found, own = parse(["--config", file("out: there\nseed: 2"), "--strategy", "joint"], extra=extra)
    assert own["out"] == "there"
    assert "out" not in found
    assert found["seed"] == 2
    assert parse(["--config", file("out: there"), "--out", "here"], extra=extra)[1]["out"] == "here"
    with pytest.raises(ValueError, match="unknown option '--out'"):
        parse(["--out", "here"])


def test_a_resolved_configuration_is_its_own_resolution():
    found = config("--data", "csv", "--data.path", "a list.csv", "--model", "resnet18", "--loss", "proxy_anchor")
    assert resolve(found) == found
    assert resolve({"version": {"torch": "1"}, **found}) == found


@pytest.mark.parametrize("strategy", ["gram", "gram+distill"])
def test_a_run_without_a_strength_can_be_read_again(strategy):
    """A strength may be null, where a budget stands in its place."""
    found = config("--strategy", strategy)
    assert resolve(found) == found


def test_configurations_beside_the_data_cards_are_valid():
    files = sorted((ROOT / "datasets").glob("*/*.yaml"))
    assert files
    for path in files:
        extra = jsonargparse.ArgumentParser(add_help=False)
        extra.add_argument("--out", type=str, default=None)
        root = ["--data.root", "photographs"] if path.parent.name == "folder" else []  # one's own
        found, _ = parse(["--config", str(path), *root], extra=extra)
        assert found["data"]["name"] == {"recogseq": "sequence", "texts": "csv"}.get(path.parent.name, path.parent.name)


def test_versions_name_what_numbers_depend_on():
    found = versions()
    assert found["tripletmas"] == __version__
    assert {"python", "torch", "torchvision", "faiss-cpu", "pytorch-metric-learning", "numpy"} <= found.keys()
    assert all(version[0].isdigit() for version in found.values())


def test_naming_the_default_again_keeps_the_options_of_the_file(tmp_path):
    (tmp_path / "run.yaml").write_text("strategy: {strength: 5}\ndata: {order_seed: 7}\n")
    config, _ = parse([f"--config={tmp_path / 'run.yaml'}", "--strategy", "mas", "--data", "digits"])
    assert config["strategy"]["strength"] == 5
    assert config["data"]["order_seed"] == 7


def test_a_percentage_in_the_help_is_one(capsys):
    with pytest.raises(SystemExit):
        config("--help")
    assert "35 to 100 % of the area" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--strategy", "gram"], None),
        (["--strategy", "gram+distill"], None),
        (["--strategy", "gram", "--gallery.compensate", "auto"], "auto"),
        (["--strategy", "mas+distill"], "linear"),
        (["--strategy", "pretrained"], "linear"),
    ],
)
def test_what_is_held_is_not_moved_unless_a_map_is_named(given: list[str], expected: str | None):
    found = config(*given)
    assert found["gallery"]["compensate"] == expected
    assert resolve(found)["gallery"]["compensate"] == expected


def test_a_preset_is_read_by_its_name(file, tmp_path, monkeypatch):
    found = config("--config", "no-reindex", "--training.epochs", "3")
    assert (found["strategy"]["name"], found["gallery"]["compensate"]) == ("mas+distill", "linear")
    assert (found["training"]["freeze_batchnorm"], found["training"]["epochs"]) == (True, 3)
    assert set(presets()) == {"no-reindex"}
    # a file of this name counts more
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no-reindex").write_text("strategy: finetune")
    assert config("--config", "no-reindex")["strategy"] == {"name": "finetune"}
    with pytest.raises(
        ValueError, match=r"'no-such.yaml' cannot be read: .* \(there are no-reindex, datasets/digits/mas.yaml, .*\)"
    ):
        config("--config", "no-such.yaml")


def test_a_configuration_of_a_data_set_is_read_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config("--config", "datasets/omniglot/mas.yaml")["data"]["name"] == "omniglot"


def test_values_that_no_file_holds_or_that_take_forever():
    with pytest.raises(ValueError, match=r"'--data\.root=caf\\udce9' is not UTF-8"):
        parse(["--data", "folder", "--data.root=caf\udce9"])
    bomb = "[&a [x,x,x,x,x,x,x,x,x,x]" + "".join(
        f", &{after} [{','.join([f'*{before}'] * 10)}]" for before, after in zip("abcdef", "bcdefg", strict=True)
    )
    with pytest.raises(ValueError, match=r"the value of --data\.groups=.* unfolds to more than 10,000"):
        parse(["--data", "folder", "--data.root", "x", f"--data.groups={bomb}]"])


@pytest.mark.parametrize(
    "given", [["--data", "hf:some/folder"], ["--data=hf:some/folder"], ["--data.name=hf:some/folder"]]
)
def test_a_folder_of_hugging_face_is_named_with_its_reader(given, tmp_path):
    config, _ = parse(given)
    assert (config["data"]["name"], config["data"]["root"]) == ("hf", "some/folder")
    file = tmp_path / "run.yaml"
    file.write_text("data: hf:some/folder\n")
    assert parse(["--config", str(file)])[0]["data"] == config["data"]
