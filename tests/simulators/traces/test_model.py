import pytest
import yaml

from caq.errors import ConfigError
from simulators.traces.model import PHONE, load_model


def edited(tmp_path, edit):
    data = yaml.safe_load(PHONE.read_text())
    edit(data)
    path = tmp_path / "phone.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_the_model_that_comes_along():
    model = load_model()
    assert "training side" in model.source
    assert 0.02 < model.drain.per_hour < 0.3 and model.drain.screen > 1


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda data: data.pop("plug"), "'plug' is missing"),
        (lambda data: data.update(plugs=1), "unknown key 'plugs'.*did you mean 'plug'"),
        (lambda data: data["plug"].pop("hour"), "plug: the key 'hour' is missing"),
        (lambda data: data["plug"]["hour"].pop(), "plug.hour: must have 24 numbers, not 23"),
        (lambda data: data["unplug"]["level"].__setitem__(3, -1), r"unplug.level\[3\]: must be at least 0"),
        (lambda data: data["drain"].update(screen="much"), "drain.screen: must be a finite number"),
        (lambda data: data["brightness"]["quantiles"].reverse(), "brightness: quantiles must ascend"),
        (lambda data: data["brightness"]["quantiles"].__setitem__(-1, 1.5), "brightness: quantiles must be at most 1"),
        (lambda data: data["memory"].update(marginal=3), "memory.marginal: must be a mapping"),
        (lambda data: data["charge"].update(level=[]), "charge.level: must have 11 numbers"),
    ],
)
def test_errors_name_file_and_field(edit, words, tmp_path):
    path = edited(tmp_path, edit)
    with pytest.raises(ConfigError, match=words) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
