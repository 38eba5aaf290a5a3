"""Images of a study before anybody sees them: what is missing, differs or says whose it is."""

import shutil
from dataclasses import replace

import pytest
from PIL import Image, PngImagePlugin

from tests.helpers.study_data import write_small_study
from wm.errors import InputError
from wm.study.check import check_images
from wm.study.study import IMAGES


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return write_small_study(folder, num_items=1), folder


@pytest.fixture
def study_and_image(plain, tmp_path):
    study, folder = plain
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return study, tmp_path, tmp_path / IMAGES / study.items[0].candidates["C-FT"]


def text_of_generator():
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "C-FT")
    return info


def exif_of_camera():
    exif = Image.Exif()
    exif[0x010F] = "C-FT"
    return exif


def test_a_good_study_passes(study_and_image):
    study, folder, _ = study_and_image
    check_images(study, folder)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.unlink(), "no such image"),
        (lambda path: path.write_bytes(b"no image"), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "cannot be read"),
        (lambda path: Image.new("RGB", (32, 31)).save(path), "32 x 31 px; expected 32 x 32"),
        (lambda path: Image.new("RGB", (32, 32)).save(path, "JPEG"), "holds JPEG"),
        (lambda path: Image.new("RGB", (32, 32)).save(path, "BMP"), "holds BMP"),
        (lambda path: Image.new("RGB", (32, 32)).save(path, pnginfo=text_of_generator()), r"\(Software\), which could"),
        (lambda path: Image.new("RGB", (32, 32)).save(path, exif=exif_of_camera()), "data beside its pixels"),
    ],
)
def test_an_image_that_says_more_than_the_others_is_refused(study_and_image, spoil, reason):
    study, folder, path = study_and_image
    spoil(path)
    with pytest.raises(InputError, match=reason):
        check_images(study, folder)


def test_a_format_of_ones_own_is_refused(study_and_image):
    study, folder, path = study_and_image
    Image.new("RGB", (32, 32)).save(path.with_suffix(".jpg"))
    item = study.items[0]
    changed = replace(item, candidates={**item.candidates, "C-FT": path.with_suffix(".jpg").name})
    with pytest.raises(InputError, match="several formats"):
        check_images(replace(study, items=(changed,)), folder)


def test_a_study_without_a_comparison_is_refused(study_and_image):
    study, folder, _ = study_and_image
    with pytest.raises(InputError, match="two or more systems"):
        check_images(replace(study, items=()), folder)
    single = replace(study.items[0], candidates={"GoT": study.items[0].candidates["GoT"]})
    with pytest.raises(InputError, match="item000 has 1 images"):
        check_images(replace(study, items=(single,)), folder)
    outside = replace(study.items[0], source="../study.json")
    with pytest.raises(InputError, match="leads out of its folder"):
        check_images(replace(study, items=(outside,)), folder)
