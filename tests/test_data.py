import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from caq.data import from_arrays, load
from caq.errors import ConfigError, DataError, MissingExtraError


def arrays(**changes):
    """Ten training and four test series (5, 2) of three classes; `None` removes a key."""
    rng = np.random.default_rng(0)
    base = {
        "x_train": rng.normal(size=(10, 5, 2)).astype(np.float32),
        "y_train": np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0], np.uint8),
        "x_test": rng.normal(size=(4, 5, 2)).astype(np.float32),
        "y_test": np.array([0, 1, 2, 0], np.int32),
        "domain_test": np.array([7, 7, 9, 9], np.uint8),
        "label_names": np.array(["walk", "run", "sit"]),
    }
    return {key: value for key, value in {**base, **changes}.items() if value is not None}


def samples(shape, dtype):
    x = np.zeros(shape, dtype)
    return arrays(x_train=np.repeat(x[:1], 10, 0), x_test=np.repeat(x[:1], 4, 0))


def with_nan():
    x = arrays()["x_train"]
    x[3, 4, 1] = np.nan
    x[5, 0, 0] = np.inf
    return arrays(x_train=x)


@pytest.mark.parametrize(
    ("shape", "dtype", "kind", "sample_shape"),
    [
        ((1, 6, 7), np.uint8, "image", (6, 7, 1)),
        ((1, 6, 7), np.int16, "series", (6, 7)),
        ((1, 6, 7), np.float32, "series", (6, 7)),
        ((1, 6, 7, 3), np.float32, "image", (6, 7, 3)),
        ((1, 6), np.uint8, "vector", (6,)),
    ],
)
def test_kind_follows_from_dtype_and_ndim(shape, dtype, kind, sample_shape):
    data = from_arrays("made", samples(shape, dtype))
    assert (data.kind, data.sample_shape) == (kind, sample_shape)


def test_kind_key_decides():
    series = from_arrays("made", samples((1, 6, 7), np.uint8) | {"kind": np.array("series")})
    assert (series.kind, series.sample_shape) == ("series", (6, 7))
    image = from_arrays("made", samples((1, 6, 7), np.float32) | {"kind": np.array("image")})
    assert (image.kind, image.sample_shape) == ("image", (6, 7, 1))


def test_npz_round_trip(tmp_path):
    np.savez_compressed(tmp_path / "walks.npz", **arrays())
    data = load(tmp_path / "walks.npz")
    assert data.name == "walks"
    assert data.num_classes == 3 and data.label_names == ("walk", "run", "sit")
    np.testing.assert_array_equal(data.x_train, arrays()["x_train"])
    assert data.y_train.dtype == data.y_test.dtype == data.domain_test.dtype == np.int64
    assert data.domain_train is None


def test_label_names_default_to_numbers():
    assert from_arrays("made", arrays(label_names=None)).label_names == ("0", "1", "2")


def test_big_endian_samples_become_native():
    data = from_arrays("made", samples((1, 6, 7), ">i2"))
    assert data.x_train.dtype == np.int16


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (arrays(y_test=None), "y_test is missing"),
        (arrays(y_tset=np.zeros(4, int)), "unknown key 'y_tset'; did you mean 'y_test'"),
        (arrays(x_train=np.zeros((10, 5, 2))), "x_train: dtype float64"),
        (arrays(x_test=np.zeros((4, 5, 2), np.int16)), "x_test: dtype int16 differs"),
        (arrays(x_train=np.zeros((10, 5, 2, 1, 1), np.uint8)), "x_train: samples must be 2-D or 3-D or 4-D"),
        (arrays(x_test=np.zeros((4, 5, 3), np.float32)), r"x_test: samples of \(5, 3\)"),
        (arrays(x_test=np.zeros((0, 5, 2), np.float32)), "x_test: empty"),
        (with_nan(), r"x_train: 2 value\(s\) .* first at index \(3, 4, 1\)"),
        (arrays(y_test=np.zeros(3, int)), r"y_test: shape \(3,\) does not match 4"),
        (arrays(domain_test=np.zeros(5, int)), r"domain_test: shape \(5,\)"),
        (arrays(domain_test=np.zeros(4)), "domain_test: must be integers"),
        (arrays(y_test=np.zeros(4, np.float32)), "y_test: must be integers"),
        (arrays(y_test=np.array([0, -1, 0, 0])), "y_test: label -1 in row 1 is negative"),
        (arrays(label_names=np.array(["walk", "run"])), "y_train: label 2 in row 2 .* only 2 names"),
        (arrays(y_test=np.array([0, 3, 0, 0]), label_names=None), "y_test: label 3 in row 1 .* ends at 2"),
        (arrays(y_train=np.full(10, 10), label_names=None), "label 10 is out of range for 10 samples"),
        (arrays(label_names=np.array([1, 2, 3])), "label_names: must be"),
        (arrays(kind=np.array("serie")), "kind: unknown 'serie'; did you mean 'series'"),
        (arrays(kind=np.array(3)), "kind: must be one string"),
        (arrays(kind=np.array("vector")), "x_train: vector must be 2-D"),
    ],
)
def test_refusals_name_file_and_key(tmp_path, changed, message):
    path = tmp_path / "bad.npz"
    np.savez(path, **changed)
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))


def test_python_objects_are_refused_unread(tmp_path):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays(domain_train=np.array([{}] * 10, object)))
    with pytest.raises(DataError, match="domain_train: cannot be read"):
        load(path)


def test_files_that_are_no_npz(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "absent.npz")
    with pytest.raises(DataError, match="did you mean 'digits'"):
        load("digit")
    np.save(tmp_path / "plain.npz.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"not an \.npz file"):
        load(tmp_path / "plain.npz.npy")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("x_train", "hello")
    with pytest.raises(DataError, match="x_train: "):
        load(tmp_path / "text.npz")
    np.savez(tmp_path / "cut.npz", **arrays())
    damaged = bytearray((tmp_path / "cut.npz").read_bytes())
    damaged[200] ^= 0xFF
    (tmp_path / "cut.npz").write_bytes(damaged)
    with pytest.raises(DataError, match="x_train: cannot be read"):
        load(tmp_path / "cut.npz")


def test_sha256_depends_on_the_data_alone(tmp_path):
    np.savez(tmp_path / "plain.npz", **arrays())
    np.savez_compressed(tmp_path / "packed.npz", **arrays(y_train=arrays()["y_train"].astype(np.int16)))
    digest = load(tmp_path / "plain.npz").sha256
    assert load(tmp_path / "packed.npz").sha256 == digest
    changed = arrays()
    changed["x_test"][0, 0, 0] += 1
    others = [changed, arrays(domain_test=None), arrays(label_names=np.array(["walk", "run", "lie"]))]
    assert digest not in {from_arrays("other", other).sha256 for other in others}


def test_domain_selects_test_rows():
    data = from_arrays("made", arrays())
    x, y = data.domain(9)
    np.testing.assert_array_equal(x, data.x_test[2:])
    np.testing.assert_array_equal(y, [2, 0])
    with pytest.raises(DataError, match=r"no row has domain 8; known: \[7, 9\]"):
        data.domain(8)
    only = data.tested_on(9)
    np.testing.assert_array_equal(only.x_test, x)
    np.testing.assert_array_equal(only.y_test, y)
    assert only.domain_test is None and only.x_train is data.x_train and data.tested_on(None) is data
    with pytest.raises(DataError, match="no domains"):
        from_arrays("made", arrays(domain_test=None)).domain(7)


def test_digits():
    pytest.importorskip("sklearn")
    data = load("digits")
    assert data.x_train.shape == (1437, 8, 8, 1) and data.x_test.shape == (360, 8, 8, 1)
    assert data.x_train.dtype == np.uint8 and data.x_train.max() == 16
    whole = np.bincount(np.concatenate([data.y_train, data.y_test]))
    np.testing.assert_allclose(np.bincount(data.y_test), whole * 360 / 1797, atol=1)
    assert load("digits").sha256 == data.sha256
    assert data.sha256 == "659dad90a1cae29ac6874c7b46dc7ae7195572723ecf52e5b8d4b6a13301f766"


def test_validation_split_is_stratified_and_seeded():
    pytest.importorskip("sklearn")
    data = load("digits")
    train, validation = data.split_validation(0.2, seed=3)
    assert len(validation) == 287
    np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.arange(1437))
    share = np.bincount(data.y_train[validation]) / np.bincount(data.y_train)
    np.testing.assert_allclose(share, 0.2, atol=0.01)
    np.testing.assert_array_equal(data.split_validation(0.2, seed=3)[1], validation)
    assert not np.array_equal(data.split_validation(0.2, seed=4)[1], validation)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1e-9, float("nan")])
def test_validation_fraction_must_leave_both_sides(fraction):
    with pytest.raises(ConfigError, match="leaves one side empty"):
        from_arrays("made", arrays()).split_validation(fraction, seed=0)


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn.*caq\[train\]"):
        load("digits")


def test_import_stays_light():
    code = "import json, sys, caq.data; print(json.dumps([m for m in ('sklearn', 'torch') if m in sys.modules]))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert json.loads(found) == []
