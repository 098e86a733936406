"""The page of a run: what it counts, shows and points out, and that it needs nothing beside it."""

import csv
import dataclasses
import html
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config, write_random_weights
from trained_models import photo

from deit_jax import report
from deit_jax.base.errors import UserError
from deit_jax.config.resolve import to_dict
from deit_jax.data import open_source
from deit_jax.data.memory import MemorySource
from deit_jax.run.duplicates import nearly_the_same, thumbnails
from deit_jax.run.evaluate import evaluate
from deit_jax.run.page import Contents, Mistake, calibration, render

CLASSES = ("a<b>", "bag", "cap")
CHECKED = "<script>alert(1)</script>"


def test_calibration_by_hand():
    probabilities = np.array([0.55, 0.58, 0.95, 1.0, 0.31])
    right = np.array([True, False, True, True, False])
    rows, error = calibration(probabilities, right)
    assert [(low, count, share) for low, _, count, _, share in rows] == [(0.3, 1, 0.0), (0.5, 2, 0.5), (0.9, 2, 1.0)]
    np.testing.assert_allclose([row[3] for row in rows], [0.31, 0.565, 0.975])
    assert error == pytest.approx(1 / 5 * 0.31 + 2 / 5 * 0.065 + 2 / 5 * 0.025)


def contents(**fields):
    shown = photo(20, 20, 0)
    given = {
        "title": f"run {CHECKED}",
        "facts": {"data": CHECKED},
        "files": {"Curves": b"png"},
        "per_class": [("bag", 4, 0.5), ("cap", 2, 0.0), (CHECKED, 1, 1.0)],
        "sure": (np.array([0.5, 0.9]), np.array([True, False])),
        "mistakes": [Mistake(CHECKED, "bag", "cap", 0.01, 0.97, [shown, shown], double="train/x.jpg (cap)")],
        "mistaken": 3,
        "doubles": [("a.jpg (bag)", "b.jpg (cap)")],
    }
    return Contents(**given | fields)


def test_a_page_tells_what_it_is_given_and_runs_nothing_of_it():
    page = render(contents())
    assert CHECKED not in page
    assert page.count(html.escape(CHECKED)) >= 5
    assert not re.search(r'(src|href)="(?!data:image/)', page)
    assert "http" not in page.replace("http-equiv", "")
    assert page.index("<td>cap</td>") < page.index("<td>bag</td>") < page.index(f"<td>{html.escape(CHECKED)}</td><td")
    assert "the worst 1 of 3" in page
    assert "told as" in page
    assert "97.0%" in page
    assert "looks like train/x.jpg (cap), which was trained on" in page
    assert "Photos that look the same on both sides: 1" in page
    assert "on both sides" not in render(contents(doubles=[]))


def test_photos_that_look_the_same_are_found_and_others_not(tmp_path):
    random = np.random.default_rng(0)

    def coarse(seed):
        return np.asarray(Image.fromarray(photo(8, 10, seed)).resize((100, 80)))

    photos = [coarse(seed) for seed in range(6)]
    again = [
        np.clip(photos[1].astype(int) + random.integers(-6, 7, photos[1].shape), 0, 255).astype(np.uint8),  # noisy
        coarse(77),
        np.asarray(Image.fromarray(photos[4]).resize((60, 44))),  # smaller
        np.full((80, 100, 3), 250, np.uint8),  # flat
        photos[2][:, ::-1],  # mirrored: not the same
    ]

    class Source(MemorySource):
        def __init__(self, images):
            super().__init__(np.zeros((len(images), 1, 1), np.uint8), np.zeros(len(images), int), ("a",))
            self.images = images

        def __getitem__(self, index):
            return super().__getitem__(index)._replace(image=self.images[index])

    files = []
    for i, pixels in enumerate(photos):
        path = tmp_path / f"{i}.{'jpg' if i % 2 else 'png'}"
        Image.fromarray(pixels).save(path)
        files.append(path.read_bytes())
    files.append(b"no photo")
    flat = Source([*files, np.full((9, 9, 3), 251, np.uint8)])
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.rot90(photos[3])).save(tmp_path / "turned.jpg", exif=turned, quality=95)
    again.append((tmp_path / "turned.jpg").read_bytes())
    assert nearly_the_same(thumbnails(Source(again), 2), thumbnails(flat, 0)) == {0: 1, 2: 4, 5: 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of photos in three classes, evaluated; one of those that it is evaluated on was trained on, too."""
    folder = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 4), ("validation", 3)):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = photo(40, 40, 100 * label + i + 10 * (split == "validation"))
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    shutil.copy(folder / "train" / "bag" / "1.png", folder / "validation" / "cap" / "9.png")
    config = tiny_config(data__name="folder", data__dir=str(folder), data__eval_split="validation", ema__decay=0.0)
    root = tmp_path_factory.mktemp("run")
    weights = tmp_path_factory.mktemp("weights")
    write_random_weights(config, CLASSES, weights)
    evaluate(dataclasses.replace(config, init_from=str(weights)), root)
    (weights / "checkpoints").rename(root / "checkpoints")
    (root / "config.json").write_text(json.dumps(to_dict(config)))
    return root


def rows_of(root):
    with (root / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_of_a_run(run, tmp_path, capsys):
    rows = rows_of(run)
    assert report.main([str(run), f"--output={tmp_path / 'page.html'}", "--images=4"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    wrong = [row for row in rows if row["class"] != row["predicted"]]
    assert (told["images"], told["mistakes"], told["doubles"]) == (10, len(wrong), 1)
    page = (tmp_path / "page.html").read_text()
    assert told["bytes"] == len(page.encode())
    figures = re.findall(r"<figure>(.*?)</figure>", page, re.DOTALL)
    worst = sorted(wrong, key=lambda row: float(row["probability_of_class"]))[:4]
    assert len(figures) == min(4, len(wrong)) > 1
    for figure, row in zip(figures, worst, strict=True):
        assert figure.count("data:image/jpeg") == 2
        assert html.escape(row["image"]) in figure
        assert f"<b>{html.escape(row['class'])}</b> {float(row['probability_of_class']):.1%}" in figure
        assert f'">{html.escape(row["predicted"])}</b> {float(row["probability"]):.1%}' in figure
    assert "<td>validation/cap/9.png (cap)</td><td>train/bag/1.png (bag)</td>" in page
    right = 1 - len(wrong) / 10
    assert f"{right:.2%} of 10 photos are told right" in page


def test_the_table_has_the_probability_of_the_class(run):
    for row in rows_of(run):
        same = row["class"] == row["predicted"]
        assert (row["probability"] == row["probability_of_class"]) == same
        assert float(row["probability_of_class"]) <= float(row["probability"]) <= 1


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (None, r"predictions\.csv: cannot be read: No such file or directory; evaluate the run, deit_jax evaluate"),
        ('image,class\n"' + "x" * 200_000, r"predictions\.csv: is not what an evaluation writes; evaluate the run"),
        ("image,class\na,b\n", r"predictions\.csv: is not what an evaluation writes; evaluate the run"),
        ("image,class,predicted,probability,probability_of_class\n", "has no photos"),
        (
            "image,class,predicted,probability,probability_of_class\ngone.jpg,bag,cap,0.5,0.1\n",
            r"1 of its photos, such as gone\.jpg, are not in config\.data\.eval_split",
        ),
    ],
)
def test_what_is_no_evaluation(run, tmp_path, spoilt, message):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "predictions.csv").unlink()
    if spoilt is not None:
        (tmp_path / "run" / "predictions.csv").write_text(spoilt)
    with pytest.raises(UserError, match=message):
        report.main([str(tmp_path / "run")])
    assert not (tmp_path / "run" / "report.html").exists()


def test_mistakes(run, tmp_path):
    with pytest.raises(UserError, match="RUN: name one run, such as"):
        report.main([])
    with pytest.raises(UserError, match="name the config that the run was started with"):
        report.main([str(tmp_path)])
    with pytest.raises(UserError, match=r"--output: cannot write .*: (Is a directory|.*); name a place"):
        report.main([str(run), f"--output={tmp_path}"])


@pytest.mark.long
def test_ten_thousand_photos_take_no_time(tmp_path):
    """Under 30 s and 20 MB, the start of Python included."""
    random = np.random.default_rng(0)
    for split, count in (("train", 10_000), ("validation", 10_000)):
        for label in range(10):
            (tmp_path / "photos" / split / f"class {label}").mkdir(parents=True)
        for i in range(count):
            path = tmp_path / "photos" / split / f"class {i % 10}" / f"{i}.jpg"
            Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize((160, 120)).save(path)
    config = tiny_config(
        data__name="folder", data__dir=str(tmp_path / "photos"), data__eval_split="validation", ema__decay=0.0
    )
    names = tuple(f"class {label}" for label in range(10))
    write_random_weights(config, names, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(json.dumps(to_dict(config)))
    source = open_source(name="folder", directory=config.data.dir, split="validation", field="x")
    with (tmp_path / "run" / "predictions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("image", "class", "predicted", "probability", "probability_of_class"))
        for i in range(len(source)):
            said, sure = random.integers(10), random.uniform(0.1, 1)
            table.writerow((source.name(i), names[source[i].label], names[said], sure, sure / 2))
    start = [sys.executable, "-m", "deit_jax.report", str(tmp_path / "run")]
    done = subprocess.run(start, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["images"] == 10_000
    assert (tmp_path / "run" / "report.html").stat().st_size < 20e6
