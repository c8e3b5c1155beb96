"""`dod-runtime restore` as a user runs it: real files, and real processes where it matters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from dod_runtime.__main__ import run as run_group_command
from dod_runtime.bundle.bundle import Bundle
from tests.runtime.toy_bundle import write_toy_bundle

ROOT = Path(__file__).parents[3]


class Done(NamedTuple):
    """A finished command: its exit code, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def command(*arguments: object, bundle: Path | None = None) -> list[str]:
    extra = ["--bundle", str(bundle)] if bundle else []
    return [sys.executable, "-m", "dod_runtime", "restore", *map(str, arguments), *extra]


def run_process(*arguments: object, bundle: Path | None = None) -> Done:
    """Run the command in a process of its own."""
    words = command(*arguments, bundle=bundle)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return Done(done.returncode, done.stdout, done.stderr)


def run(*arguments: object, bundle: Path | None = None) -> Done:
    """Run the command in this process, which is faster."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = run_group_command(command(*arguments, bundle=bundle)[3:])
    return Done(code, out.getvalue(), err.getvalue())


def refused(done: Done, *words: str) -> None:
    """Exit code 2, and one line on stderr that holds all of `words`."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


@pytest.fixture
def image(tmp_path: Path, photo: np.ndarray) -> Path:
    Image.fromarray(photo).save(tmp_path / "in.png")
    return tmp_path / "in.png"


def test_file_to_file(image: Path, identity: Bundle, photo: np.ndarray) -> None:
    done = run_process(image, image.with_name("out.png"), bundle=identity.folder)
    assert done.returncode == 0, done.stderr
    assert str(image.with_name("out.png")) in done.stdout and "onnxruntime_" in done.stdout and done.stderr == ""
    with Image.open(image.with_name("out.png")) as result:
        np.testing.assert_array_equal(np.asarray(result), photo)


def test_options(image: Path, toy: Bundle) -> None:
    names = ("--condition", "haze", "--backend", "onnxruntime_cpu", "--precision", "fp16")
    done = run(image, image.with_name("out.jpg"), *names, "--num-threads", 1, "--tile-size", 64, bundle=toy.folder)
    assert done.returncode == 0, done.stderr
    assert "onnxruntime_cpu" in done.stdout and "1 thread, fp16" in done.stdout
    with Image.open(image.with_name("out.jpg")) as result:
        assert result.format == "JPEG" and result.size == (90, 60)


def test_verbose_and_quiet(image: Path, toy: Bundle) -> None:
    out = image.with_name("out.png")
    done = run(image, out, "--verbose", "--condition", "haze", bundle=toy.folder)
    assert done.returncode == 0 and "bypass share 0.00" in done.stdout
    assert done.stderr.startswith("info: ") and "onnxruntime_" in done.stderr
    out.unlink()
    done = run(image, out, "--quiet", bundle=toy.folder)
    assert done.returncode == 0 and done.stdout == done.stderr == "" and out.exists()
    refused(run(image, out, "--quiet", bundle=image.parent), "not a bundle")


def test_former_spellings(image: Path, toy: Bundle) -> None:
    done = run(image, image.with_name("out.png"), "--threads=1", "--tile", 64, "--batch", 2, bundle=toy.folder)
    assert done.returncode == 0 and "1 thread" in done.stdout


def test_folder_to_folder_with_bad_images(tmp_path: Path, toy: Bundle, photo: np.ndarray) -> None:
    photos, restored = tmp_path / "photos", tmp_path / "restored"
    (photos / "sub").mkdir(parents=True)
    Image.fromarray(photo).save(photos / "a.png")
    Image.fromarray(photo).save(photos / "sub" / "b.jpg")
    Image.fromarray(photo).save(photos / "z.webp")
    (photos / "bad.png").write_text("no image")
    (photos / "cut.jpg").write_bytes((photos / "sub" / "b.jpg").read_bytes()[:900])
    (photos / "notes.txt").write_text("no image, and not meant to be one")
    done = run(photos, restored, "--batch-size", 2, bundle=toy.folder)
    assert done.returncode == 1
    written = sorted(path.relative_to(restored).as_posix() for path in restored.rglob("*") if path.is_file())
    assert written == ["a.png", "sub/b.jpg", "z.webp"]
    assert "3 of 5 images restored" in done.stdout
    failed = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2 and "bad.png" in failed[0] and "cut.jpg" in failed[1]
    assert "Traceback" not in done.stderr and "5/5" in done.stderr
    again = run(photos, restored, "--quiet", bundle=toy.folder)
    assert again.returncode == 1 and again.stdout == ""
    assert [line.split(": ")[0] for line in again.stderr.splitlines()] == ["failed"] * 2


def test_a_verbose_folder_has_a_line_for_each_image(tmp_path: Path, toy: Bundle, photo: np.ndarray) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(photo).save(tmp_path / "in" / name)
    done = run(tmp_path / "in", tmp_path / "out", "--verbose", bundle=toy.folder)
    lines = done.stdout.splitlines()
    assert ["bypass share" in line for line in lines] == [True, True, False] and "2 of 2" in lines[2]


def test_images_that_bypass_the_model_are_counted(tmp_path: Path, gated: Bundle, photo: np.ndarray) -> None:
    (tmp_path / "in").mkdir()
    for name, image in (("dark.png", 40 + photo // 8), ("bright.png", 255 - photo // 8)):
        Image.fromarray(image).save(tmp_path / "in" / name)
    done = run(tmp_path / "in", tmp_path / "out", bundle=gated.folder)
    assert done.stdout.splitlines()[1].startswith("1 of them") and "--no-bypass" in done.stdout
    done = run(tmp_path / "in", tmp_path / "out", "--no-bypass", bundle=gated.folder)
    assert len(done.stdout.splitlines()) == 1


def test_output_folder_inside_the_input(tmp_path: Path, toy: Bundle, image: Path) -> None:
    for _ in range(2):
        done = run(tmp_path, tmp_path / "restored", bundle=toy.folder)
        assert done.returncode == 0 and "1 of 1 images restored" in done.stdout
    assert [path.name for path in (tmp_path / "restored").iterdir()] == ["in.png"]


def test_warnings_are_one_line(tmp_path: Path, toy: Bundle, photo: np.ndarray) -> None:
    frames = [Image.fromarray(photo), Image.fromarray(photo[::-1])]
    frames[0].save(tmp_path / "two.tif", save_all=True, append_images=frames[1:])
    done = run(tmp_path / "two.tif", tmp_path / "out.png", bundle=toy.folder)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: ") and done.stderr.count("\n") == 1
    assert "two.tif" in done.stderr and "2 frames" in done.stderr
    assert run(tmp_path / "two.tif", tmp_path / "out.png", "--quiet", bundle=toy.folder).stderr == ""


def test_usage_errors(image: Path, toy: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    before = sorted(os.listdir(tmp_path))
    refused(run(image), "output", "--help")
    refused(run(image, out, "--batch-siz", 2), "--batch-siz")
    refused(run(image, out, "--condition", "hase", bundle=toy.folder), "'hase'", "'haze'?", "auto")
    refused(run(image, out, "--backend", "cuda", bundle=toy.folder), "'cuda'", "onnxruntime_cpu")
    refused(run(image, out, "--backend", "tensorrt", bundle=toy.folder), "tensorrt", "onnxruntime_cpu")
    refused(run(image, out, "--precision", "int8", bundle=toy.folder), "'int8'", "fp32, fp16")
    refused(run(image, out, "--tile-size", 100, bundle=toy.folder), "100", "16", "32", "128", "96")
    refused(run(image, out, bundle=tmp_path / "none"), str(tmp_path / "none"), "dod-export build")
    refused(run(image, out, bundle=tmp_path), str(tmp_path), "not a bundle")
    refused(run(tmp_path / "none.png", out, bundle=toy.folder), "none.png")
    refused(run(image, image, bundle=toy.folder), "INPUT", "OUTPUT")
    refused(run(tmp_path, tmp_path, bundle=toy.folder), "INPUT", "OUTPUT")
    refused(run(image, tmp_path, bundle=toy.folder), "INPUT is a file", "name the file")
    refused(run(tmp_path, image, bundle=toy.folder), "INPUT is a folder", "name a folder")
    refused(run(image, tmp_path / "out.xyz", bundle=toy.folder), ".xyz")
    assert sorted(os.listdir(tmp_path)) == before


def test_bad_images_are_usage_errors_too(tmp_path: Path, toy: Bundle) -> None:
    (tmp_path / "text.png").write_text("no image")
    refused(run(tmp_path / "text.png", tmp_path / "out.png", bundle=toy.folder), "text.png")
    Image.new("LA", (10, 10)).save(tmp_path / "alpha.png")
    refused(run(tmp_path / "alpha.png", tmp_path / "out.jpg", bundle=toy.folder), "JPEG", "transparency")
    assert not (tmp_path / "out.png").exists() and not (tmp_path / "out.jpg").exists()


def test_outputs_must_not_overwrite_inputs(tmp_path: Path, toy: Bundle, photo: np.ndarray) -> None:
    (tmp_path / "in" / "in").mkdir(parents=True)
    Image.fromarray(photo).save(tmp_path / "in" / "a.png")
    Image.fromarray(photo).save(tmp_path / "in" / "in" / "a.png")
    refused(run(tmp_path / "in", tmp_path, bundle=toy.folder), "overwrite", "a.png")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(run(empty, tmp_path / "out", bundle=toy.folder), str(empty))


def test_a_disk_error_of_one_image_does_not_end_the_folder(tmp_path: Path, toy: Bundle, photo: np.ndarray) -> None:
    long = f"{'a' * 250}.png"
    for name in ("one/a.png", "two/b.png", f"two/{long}"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(tmp_path / "in" / name)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "one").write_text("where a folder should be")
    done = run(tmp_path / "in", tmp_path / "out", bundle=toy.folder)
    assert done.returncode == 1 and "2 of 3 images restored" in done.stdout
    assert f"failed: {tmp_path}/in/one/a.png: " in done.stderr and done.stderr.count("failed: ") == 1
    assert sorted(os.listdir(tmp_path / "out" / "two")) == [long, "b.png"]


def test_a_changed_bundle(image: Path, tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "bundle", precisions=["fp32"])
    path = bundle / "onnx/fp32/encoder.onnx"
    raw = bytearray(path.read_bytes())
    raw[10] ^= 1
    path.write_bytes(raw)
    refused(run(image, tmp_path / "out.png", bundle=bundle), "encoder.onnx was changed", "dod-export build")
    path.unlink()
    refused(run(image, tmp_path / "out.png", bundle=bundle), "onnx/fp32/encoder.onnx", "dod-export build")
    assert not (tmp_path / "out.png").exists()


@pytest.mark.skipif(os.name == "nt", reason="a limit of POSIX")
def test_no_room_on_the_disk(image: Path, tmp_path: Path, toy: Bundle) -> None:
    import resource

    done = subprocess.run(
        command(image, tmp_path / "out.png", bundle=toy.folder),
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    refused(Done(done.returncode, done.stdout, done.stderr), "out.png")
    assert sorted(os.listdir(tmp_path)) == ["in.png"]


def test_debug_shows_the_traceback(image: Path, tmp_path: Path) -> None:
    done = run(image, tmp_path / "out.png", "--debug", bundle=tmp_path / "none")
    assert done.returncode == 2 and "Traceback" in done.stderr and "BundleNotFoundError" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_interrupted(tmp_path: Path, toy: Bundle, photo: np.ndarray) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(400):
        Image.fromarray(photo).save(photos / f"{i:03}.png")
    process = subprocess.Popen(
        command(photos, tmp_path / "out", bundle=toy.folder),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 30
    while not (tmp_path / "out").is_dir() and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted" and "Traceback" not in errors
    written = list((tmp_path / "out").iterdir())
    assert len(written) < 400 and not [path for path in written if path.name.endswith(".part")]
    for path in written:
        with Image.open(path) as image:
            image.load()
