"""Original releases that are damaged, incomplete or another model's: one line that names the file."""

import json
import shutil

import pytest
import torch

from tests.helpers.models_release import (
    convert,
    logits,
    random_model,
    tokenizer_json,
    write_release,
)
from wm.errors import InputError
from wm.models import load_model
from wm.models.release.convert import plan_conversion


def spoil_params(folder, **changes):
    path = folder / "models/7b/params.json"
    values = json.loads(path.read_text())
    for name, value in changes.items():
        if value is None:
            values["model"].pop(name)
        else:
            values["model"][name] = value
    path.write_text(json.dumps(values))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("release") / "original", random_model(parts=2))


@pytest.fixture
def release(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "copy")


def test_all_unfitting_tensors_of_all_parts_are_one_error(release):
    file = release / "models/7b/consolidated.01.pth"
    part = torch.load(file, weights_only=True)
    del part["layers.1.attention.k_normalization.bias"]
    part["norm.weight"] = torch.zeros(7)
    part["layers.2.ffn_norm.weight"] = torch.zeros(32)
    torch.save(part, file)
    first = release / "models/7b/consolidated.00.pth"
    part = torch.load(first, weights_only=True)
    torch.save({name: value for name, value in part.items() if "attention.w" not in name}, first)
    with pytest.raises(InputError) as error:
        plan_conversion(release)
    message = str(error.value)
    assert "\n" not in message
    for words in (
        "7b: tensors do not fit the configuration; 9 missing: consolidated.00.pth: layers.0.attention.wk.weight "
        "(expected (16, 32))",
        "consolidated.01.pth: layers.1.attention.k_normalization.bias (expected (8,))",
        "1 misshapen: consolidated.01.pth: norm.weight (7,) not (32,)",
        "1 extra: consolidated.01.pth: layers.2.ffn_norm.weight (32,)",
    ):
        assert words in message, message


def test_only_ten_of_each_kind_are_named(release):
    for rank in (0, 1):
        file = release / f"models/7b/consolidated.{rank:02d}.pth"
        part = torch.load(file, weights_only=True)
        torch.save({name: value for name, value in part.items() if "layers" not in name}, file)
    with pytest.raises(InputError, match=r"52 missing: (consolidated[^(]+\(expected \([^)]+\)\), ){10}…$"):
        plan_conversion(release)


def test_missing_and_surplus_files_are_named(release):
    folder = release / "models/7b"
    (folder / "consolidated.01.pth").rename(folder / "aside")
    with pytest.raises(InputError, match=r"7b: consolidated.01.pth not there; params.json promises 2"):
        plan_conversion(release)
    (folder / "aside").rename(folder / "consolidated.01.pth")
    shutil.copy(folder / "consolidated.01.pth", folder / "consolidated.02.pth")
    with pytest.raises(InputError, match=r"holds 3 files consolidated.NN.pth, but .* model_parallel_size is 2"):
        plan_conversion(release)
    (folder / "consolidated.02.pth").unlink()
    for name in ("text_tokenizer.json", "vqgan.yaml", "vqgan.ckpt"):
        (release / "tokenizer" / name).rename(folder / "aside")
        with pytest.raises(InputError, match=rf"no {name} in .*tokenizer"):
            plan_conversion(release)
        (folder / "aside").rename(release / "tokenizer" / name)
    (folder / "params.json").unlink()
    with pytest.raises(InputError, match=r"no params.json in .*7b"):
        plan_conversion(release)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match=r"no params.json and consolidated\*.pth in .*copy; expected models/7b"):
        plan_conversion(release)


def test_half_downloaded_and_foreign_files(release):
    file = release / "models/7b/consolidated.01.pth"
    complete = file.read_bytes()
    for data, message in (
        (complete[: len(complete) // 2], r"consolidated.01.pth cannot be read \(\d+ bytes; half downloaded\?\)"),
        (b"", "consolidated.01.pth is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a git-lfs pointer"),
        (b"<html>not found</html>", "consolidated.01.pth is no file of torch.save: it starts with b'<htm'"),
    ):
        file.write_bytes(data)
        with pytest.raises(InputError, match=message):
            plan_conversion(release)
    torch.save([1, 2], file)
    with pytest.raises(InputError, match="expected a dictionary of tensors, got list"):
        plan_conversion(release)
    torch.save({"norm.weight": "words"}, file)
    with pytest.raises(InputError, match=r"expected tensors only, but 'norm.weight' is a str"):
        plan_conversion(release)


def test_nothing_in_a_file_is_run(release, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    file = release / "models/7b/consolidated.01.pth"
    torch.save({"norm.weight": Trap()}, file)
    with pytest.raises(InputError, match=r"holds Python objects besides tensors, which are never loaded"):
        plan_conversion(release)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": None}, "params.json: dim is None, expected a positive whole number"),
        ({"n_heads": 3}, "n_heads 3, .* do not divide evenly"),
        ({"n_layers": 3}, r"26 missing: consolidated.00.pth: layers.2"),
        ({"n_layers": 10**6}, "params.json: n_layers is 1,000,000, expected at most 1,024"),
        ({"vocab_size": 10**12}, "vocab_size is 1,000,000,000,000, expected at most 4,194,304"),
        ({"vocab_size": 44}, r"2 misshapen|4 misshapen"),
        ({"vocab_size": 30}, "vocab_size is 30, but .*text_tokenizer.json numbers its tokens up to 39"),
        ({"qk_normalization": False}, "qk_normalization is false"),
        ({"ffn_dim_multiplier": 1.0}, r"feed_forward.w1.weight \(24, 32\) not \(48, 32\)"),
        ({"norm_eps": "small"}, "norm_eps is 'small', expected a number"),
    ],
)
def test_params_that_do_not_fit(release, changes, message):
    spoil_params(release, **changes)
    with pytest.raises(InputError, match=message):
        plan_conversion(release)


def test_another_familys_checkpoint(release):
    """Llama's has the same files, but no norms of queries and keys."""
    for rank in (0, 1):
        file = release / f"models/7b/consolidated.{rank:02d}.pth"
        part = torch.load(file, weights_only=True)
        torch.save({name: value for name, value in part.items() if "normalization" not in name}, file)
    with pytest.raises(InputError, match=r"16 missing: consolidated.00.pth: layers.0.attention.k_normalization.bias"):
        plan_conversion(release)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("IMGIMGAZ", "IMGIMGKZ", "'IMGIMGKZ' names no code of a codebook of 16"),
        ("IMGIMGAZ", "IMGIMGBGZ", "'IMGIMGBGZ' names no code"),
        ("IMGIMGAZ", "IMGIMGABZ", "two tokens for image code 1"),
        ("IMGIMGAZ", "hello", "no token for 1 image codes, 0 among them"),
        ("<racm3:break>", "<racm4>", "no token boi '<racm3:break>'"),
    ],
)
def test_vocabularies_that_do_not_fit(release, old, new, message):
    values = tokenizer_json()
    words = values["model"]["vocab"]
    words[new] = words.pop(old)
    for token in values["added_tokens"]:
        if token["content"] == old:
            token["content"] = new
    (release / "tokenizer/text_tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=message):
        plan_conversion(release)
    (release / "tokenizer/text_tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(InputError, match=r"text_tokenizer.json is no tokenizer"):
        plan_conversion(release)


def test_params_may_be_flat(release, tmp_path):
    expected = logits(load_model(convert(release, tmp_path / "nested")))
    path = release / "models/7b/params.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values.pop("model"), "model_parallel_size": 2, "vocab_size": -1}))
    assert torch.equal(logits(load_model(convert(release, tmp_path / "flat"))), expected)


@pytest.mark.parametrize(
    "name",
    [
        *("models/7b/params.json", "models/7b/consolidate_params.json", "models/7b/consolidated.00.pth"),
        *("tokenizer/text_tokenizer.json", "tokenizer/vqgan.yaml", "tokenizer/vqgan.ckpt"),
    ],
)
def test_any_damaged_file_is_named_in_one_line(release, name):
    file = release / name
    complete = file.read_bytes()
    middle = len(complete) // 2
    short = b"" if name.endswith("yaml") else complete[:-1]  # a YAML file does without its last line feed
    for data in (complete[:middle], short, b"[]", b"null", b"3", b"\xff\xfe", b"\0" * 50, complete[:9] + complete[99:]):
        file.write_bytes(data)
        with pytest.raises(InputError) as error:
            plan_conversion(release)
        assert file.name in str(error.value) and "\n" not in str(error.value)
