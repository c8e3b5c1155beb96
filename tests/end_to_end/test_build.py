"""From a checkpoint to a restored photograph with the real commands, and errors on the way."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from dod.checkpoint import load_model, save_checkpoint
from dod_runtime import Bundle, Restorer
from dod_runtime.backends.openvino.backend import reduced_precisions
from dod_runtime.bundle.bundle import LEDGER, MANIFEST
from dod_runtime.errors import BackendError
from export.parity.compare import GATES
from tests.conftest import CONDITIONS, ROOT, SIZES, build_engines
from tests.export.planted import BLOCK, LOUD, plant_overflow

Build = tuple[Path, subprocess.CompletedProcess[str], list[str]]
GRAPHS = ("mfm", "encoder", "unet_dynamic", "unet_merged", "decoder")
ENGINES = {"mfm", "encoder", "decoder", "unet_dynamic", *(f"unet_{name}" for name in CONDITIONS)}


def restore(*arguments: object, where: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dod_runtime", "restore", *map(str, arguments)]
    environment = {"PYTHONPATH": str(ROOT / "runtime"), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=300, env=environment)


def test_the_bundle_is_complete(tiny_build: Build) -> None:
    folder, done, _ = tiny_build
    bundle = Bundle.open(folder)
    bundle.verify()
    assert not any(name.startswith("report") or name == LEDGER for name in bundle.manifest.files)
    assert set(bundle.manifest.conditions) == set(CONDITIONS)
    rtx = bundle.manifest.targets["tensorrt_rtx"]
    assert set(rtx.engines) == ENGINES and rtx.compute_capabilities == ("8.6", "8.9", "12.0")
    for precision in ("fp32", "fp16"):
        weights = set(bundle.manifest.precisions[precision].weights.values())
        assert len(weights) == 4, "both UNet graphs share one weights file"
    precision = json.loads((folder / "report" / "precision.json").read_text())
    fp32_modules = json.loads((folder / "report" / "fp32_modules.json").read_text())
    assert list(precision["fp32_modules"]) == fp32_modules == list(bundle.manifest.precisions["fp16"].fp32_modules)
    assert precision["trials"][-1]["psnr_db"] >= 45 and (folder / "report" / "precision.png").is_file()
    assert (folder / "report.md").is_file() and not list(folder.parent.glob("*.partial"))
    for name in (*(f"onnx/fp16/{graph}.onnx" for graph in GRAPHS), "engines/tensorrt_rtx/unet_noise.engine"):
        assert name in done.stdout, "one line for each artefact"


def results_of(bundle: Path) -> list[dict[str, Any]]:
    """All parity results of a bundle."""
    return [row for file in (bundle / "report" / "parity").iterdir() for row in json.loads(file.read_text())]


def test_every_result_is_there_and_above_its_threshold(tiny_build: Build) -> None:
    results = results_of(tiny_build[0])
    pipelines = {(row["path"], row["step"]) for row in results if row["component"] == "pipeline"}
    steps = {"onnx fp32", "openvino fp32", "torch fp16", "onnx fp16"}
    assert pipelines >= {("auto", step) for step in steps} | {("noise", step) for step in steps | {"merged"}}
    assert {row["component"] for row in results} >= set(GRAPHS) | {"pipeline", "layer"}
    assert all(row["passed"] for row in results if row["step"] not in GATES)
    assert all("fp32" in row["measured_with"] for row in results if row["step"] == "onnx fp16")


def test_the_report_opens_with_the_verdict(tiny_build: Build) -> None:
    lines = (tiny_build[0] / "report.md").read_text().splitlines()[2:5]
    assert [line.partition(":")[0] for line in lines] == ["- Built", "- Parity", "- Not checked"]
    assert all(line.removeprefix("- ") in tiny_build[1].stdout for line in lines), "the terminal says the same"
    assert "tensorrt_rtx" in lines[0] and "tensorrt_rtx" in lines[2]
    assert str(tiny_build[0]) in tiny_build[1].stdout.splitlines()[-1]


def test_bf16_is_offered_if_every_result_of_its_gate_passed(tiny_build: Build) -> None:
    bundle = Bundle.open(tiny_build[0])
    gate = [row for row in bundle.manifest.parity if row["step"] == "openvino bf16" and row["component"] == "pipeline"]
    assert {row["path"] for row in gate} == ({"auto", "noise", "haze"} if reduced_precisions() else set())
    passed = bool(gate) and all(row["passed"] for row in gate)
    assert bundle.manifest.targets["openvino"].precisions == (("fp32", "bf16") if passed else ("fp32",))
    verdict = "missed: not offered"
    assert (verdict in (tiny_build[0] / "report.md").read_text()) is (verdict in tiny_build[1].stdout)
    assert (verdict in tiny_build[1].stdout) is (bool(gate) and not passed)
    if not passed:
        with pytest.raises(BackendError, match="openvino.*bf16"):
            Restorer(bundle, "openvino", precision="bf16")


@pytest.mark.slow
def test_polygraphy_accepts_every_graph(tiny_bundle: Path) -> None:
    shapes = {
        "mfm": ["crops:[2,4,3,32,32]"],
        "encoder": ["image:[2,3,96,64]"],
        "unet_dynamic": ["latent:[2,4,12,8]", "modulation:[2,72,2,4]"],
        "unet_merged": ["latent:[2,4,12,8]"],
        "decoder": [
            *("latent_restored:[2,4,12,8]", "skip_0:[2,8,96,64]", "skip_1:[2,8,48,32]"),
            *("skip_2:[2,8,24,16]", "skip_3:[2,16,12,8]"),
        ],
    }
    polygraphy = str(Path(sys.executable).with_name("polygraphy"))
    calls = []
    for precision in ("fp32", "fp16"):
        for graph in GRAPHS:
            path = str(tiny_bundle / "onnx" / precision / f"{graph}.onnx")
            calls.append([polygraphy, "inspect", "model", path])
            calls.append([polygraphy, "run", path, "--onnxrt", "--input-shapes", *shapes[graph]])
    with ThreadPoolExecutor(2) as pool:
        for call, done in zip(
            calls, pool.map(lambda c: subprocess.run(c, capture_output=True, text=True), calls), strict=True
        ):
            assert done.returncode == 0, f"{call}: {done.stdout[-1500:]}{done.stderr[-1500:]}"


@pytest.mark.parametrize("condition", ["auto", "noise"])
def test_a_photograph_is_restored(tiny_bundle: Path, photographs: Path, tmp_path: Path, condition: str) -> None:
    done = restore(
        photographs / "noise.png",
        tmp_path / "out.png",
        "--bundle",
        tiny_bundle,
        "--condition",
        condition,
        where=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out.png") as restored, Image.open(photographs / "noise.png") as degraded:
        assert restored.size == degraded.size
        assert np.any(np.asarray(restored) != np.asarray(degraded))


@pytest.mark.parametrize("backend", ["onnxruntime_cpu", "openvino"])
def test_switching_conditions_is_idempotent(backend: str, tiny_bundle: Path, photographs: Path) -> None:
    with Restorer(tiny_bundle, backend=backend) as restorer:
        first, other, again = (
            np.asarray(restorer.restore(photographs / "haze.png", c)) for c in ("noise", "haze", "noise")
        )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_second_build_makes_nothing(copy: tuple[Path, list[str]], tmp_path: Path) -> None:
    bundle, arguments = copy
    before = {path: path.read_bytes() for path in (*bundle.rglob("*.onnx"), bundle / MANIFEST)}
    explained = build_engines(*arguments, "--explain", where=tmp_path)
    assert explained.returncode == 0 and "stale" not in explained.stdout
    ledger = json.loads((bundle / LEDGER).read_text())["files"]
    assert {line.partition(": cached")[0] for line in explained.stdout.splitlines()} == ledger.keys()
    done = build_engines(*arguments, where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ".onnx " not in done.stdout and ".engine " not in done.stdout
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.slow
def test_two_builds_from_the_same_inputs_are_the_same(tiny_build: Build, tmp_path: Path) -> None:
    bundle, _, arguments = tiny_build
    other = tmp_path / "other"
    done = build_engines(*arguments, "--out", str(other), where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (other / MANIFEST).read_bytes() == (bundle / MANIFEST).read_bytes()
    explained = build_engines(*arguments, "--out", str(other), "--explain", where=tmp_path)
    assert explained.returncode == 0 and "report/parity/auto.json: cached" in explained.stdout
    assert "stale" not in explained.stdout


def test_a_bundle_without_its_ledger_is_complete(copy: tuple[Path, list[str]], tmp_path: Path) -> None:
    bundle, arguments = copy
    (bundle / LEDGER).unlink()
    Bundle.open(bundle).verify()
    explained = build_engines(*arguments, "--explain", where=tmp_path)
    assert explained.returncode == 0 and "cached" not in explained.stdout
    assert "onnx/fp32/mfm.onnx: stale: not built yet" in explained.stdout


@pytest.mark.slow
def test_another_prototype_costs_its_own_path_alone(
    copy: tuple[Path, list[str]], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    bundle, arguments = copy
    model = load_model(str(tiny_checkpoint), None, None)
    model.prototypes["haze"] = model.prototypes["noise"] * 1.01
    save_checkpoint(model, tmp_path / "calibrated")
    arguments = [str(tmp_path / "calibrated") if each == str(tiny_checkpoint) else each for each in arguments]
    model_before, entries_before = json.loads((bundle / MANIFEST).read_text())["model"], ledger_of(bundle)
    results_before = [row for row in results_of(bundle) if row["path"] != "haze"]
    done = build_engines(*arguments, where=tmp_path)
    assert done.returncode == 0, done.stderr
    changed = {name for name, entry in ledger_of(bundle).items() if entry != entries_before[name]}
    engine = "engines/tensorrt_rtx/unet_haze.engine"
    assert changed == {"conditions/haze.safetensors", engine, "report/parity/haze.json"}
    model_after = json.loads((bundle / MANIFEST).read_text())["model"]
    assert model_after["checkpoint_sha256"] != model_before["checkpoint_sha256"]
    assert [row for row in results_of(bundle) if row["path"] != "haze"] == results_before
    steps = 5 + len(reduced_precisions())  # of one path, one after the other
    assert any(f"{steps}/{steps}" in line for line in done.stderr.splitlines() if line.startswith("parity"))


def ledger_of(bundle: Path) -> dict[str, Any]:
    """The entries of a bundle's ledger, without the state of the files on this disk: the bundle was copied."""
    entries = json.loads((bundle / LEDGER).read_text())["files"]
    return {name: {key: value for key, value in entry.items() if key != "state"} for name, entry in entries.items()}


@pytest.mark.slow
def test_a_changed_byte_is_refused_and_built_again(
    copy: tuple[Path, list[str]], photographs: Path, tmp_path: Path
) -> None:
    bundle, arguments = copy
    file = bundle / "conditions" / "noise.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    call = (photographs / "noise.png", tmp_path / "out.png", "--bundle", bundle, "--condition", "noise")
    refused = restore(*call, where=tmp_path)
    assert refused.returncode == 2 and refused.stderr.count("\n") <= 2 and "dod-export build" in refused.stderr
    assert not (tmp_path / "out.png").exists()
    assert build_engines(*arguments, where=tmp_path).returncode == 0
    assert restore(*call, where=tmp_path).returncode == 0


@pytest.mark.slow
def test_an_interrupted_build_resumes(tiny_build: Build, tmp_path: Path) -> None:
    _, _, arguments = tiny_build
    arguments = [*arguments, "--out", str(tmp_path / "other"), "--conditions", "noise"]
    command = [sys.executable, "-u", str(ROOT / "export" / "build_engines.py"), *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors and errors.strip().endswith("interrupted")
    assert not (tmp_path / "other").exists()
    explained = build_engines(*arguments, "--explain", where=tmp_path)
    assert f"{line.split()[0]}: cached" in explained.stdout


def command_of(process: psutil.Process) -> str:
    """Return the command line of a process, "" if it has just ended."""
    with suppress(psutil.Error):
        return str(process.cmdline())
    return ""


@pytest.mark.slow
def test_a_killed_builder_is_named_and_the_rest_is_kept(copy: tuple[Path, list[str]], tmp_path: Path) -> None:
    bundle, arguments = copy
    lost = [bundle / "engines" / "tensorrt_rtx" / f"{name}.engine" for name in ("unet_dynamic", "mfm")]
    for engine in lost:
        engine.unlink()
    command = [sys.executable, str(ROOT / "export" / "build_engines.py"), *arguments]
    with psutil.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (builders := [each for each in process.children() if "unet_dynamic.onnx" in command_of(each)]):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        builders[0].kill()
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 2 and "Traceback" not in errors
    assert "unet_dynamic" in errors.splitlines()[-1] and "SIGKILL" in errors.splitlines()[-1]
    done = build_engines(*arguments, where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "unet_dynamic.engine " in done.stdout
    assert "decoder.engine " not in done.stdout and ".onnx " not in done.stdout
    assert all(engine.is_file() for engine in lost)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--targets", "tensorrt_rxt"], ["tensorrt_rxt", "did you mean", "tensorrt_rtx"]),
        (["--conditions", "rian"], ["rian", "did you mean", "rain"]),
        (["--max-size", "250"], ["--max-size 250", "240", "256"]),
        (["--compute-capabilities", "9.9"], ["9.9", "8.9"]),
        (["--fp32-modules", "unet.nothing"], ["unet.nothing", "unet.unet.conv_out"]),
    ],
)
def test_wrong_arguments(tiny_build: Build, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    done = build_engines(*tiny_build[2], "--out", str(tmp_path / "x"), *arguments, where=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.partial").exists()


@pytest.fixture(scope="module")
def planted_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with a layer of a detail module that overflows in fp16 (see tests/export/planted.py)."""
    folder = tmp_path_factory.mktemp("planted") / "tiny"
    save_checkpoint(plant_overflow(load_model(str(tiny_checkpoint), None, None)), folder)
    return folder


@pytest.mark.slow
def test_an_overflow_without_fp32_modules_fails_the_build(
    planted_checkpoint: Path, photographs: Path, tmp_path: Path
) -> None:
    arguments = ["--checkpoint", str(planted_checkpoint), "--out", str(tmp_path / "x"), "--targets", "onnxruntime"]
    arguments += [*SIZES, "--images", str(photographs), "--precision", "fp16", "--conditions", "noise"]
    done = build_engines(*arguments, "--fp32-modules", where=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "x").exists()
    message = done.stderr.strip().splitlines()[-1]
    assert f"{LOUD} conv2d" in message and "65504" in message and "--fp32-modules" in message, done.stderr
    assert ".onnx" not in done.stdout, "refused before a graph is traced"


@pytest.mark.slow
def test_an_overflow_is_cured_by_the_build(planted_checkpoint: Path, photographs: Path, tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(planted_checkpoint), "--out", str(tmp_path / "x"), "--targets", "onnxruntime"]
    arguments += [*SIZES, "--images", str(photographs), "--precision", "fp16", "--conditions", "noise"]
    done = build_engines(*arguments, where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Bundle.open(tmp_path / "x").manifest.precisions["fp16"].fp32_modules == (BLOCK,)
    report = (tmp_path / "x" / "report.md").read_text()
    assert f"`{BLOCK}`" in report and (tmp_path / "x" / "report" / "precision.png").is_file()


@pytest.mark.slow
def test_a_checkpoint_for_another_base(tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    metadata = json.loads((other / "dod.json").read_text())
    (other / "dod.json").write_text(json.dumps({**metadata, "base_sha256": "0" * 64}))
    done = build_engines("--checkpoint", str(other), "--out", str(tmp_path / "x"), where=tmp_path)
    assert done.returncode == 2 and "another base" in done.stderr and "Traceback" not in done.stderr
