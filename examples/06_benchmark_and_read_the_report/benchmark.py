"""Measure the latency of a bundle, print the fastest model that passed its parity check, and the bundle's verdict."""

import argparse
import json
import subprocess
from pathlib import Path


def main() -> int:
    """Run `dod-bench latency` and read its results; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--bundle", type=Path, default=Path("build/mini"), help="folder of the bundle (default: build/mini)"
    )
    parser.add_argument("--json", type=Path, default=Path("build/latency.json"), help="file for the results")
    arguments, options = parser.parse_known_args()  # other options are those of dod-bench latency

    command = ["dod-bench", "latency", "--bundle", arguments.bundle, "--json", arguments.json, *options]
    code = subprocess.run(command).returncode
    if code == 2:  # wrong arguments or no bundle: dod-bench has said why
        return code
    results = json.loads(arguments.json.read_text())["results"]
    print()
    for path in dict.fromkeys(result["path"] for result in results):
        # `passed` is true, false, or null for PyTorch in fp32, the reference of the parity checks
        usable = [result for result in results if result["path"] == path and result["passed"] is not False]
        best = min(usable, key=lambda result: result["ms"]["image"]["p50"])
        speed_up = f"{best['speed_up']:.2f} x PyTorch" if best["speed_up"] else "no PyTorch result on this device"
        print(f"{path}: {best['backend']} {best['precision']}, {best['ms']['image']['p50']:.1f} ms, {speed_up}")
    print("\nverdict of the build:")
    print("\n".join((arguments.bundle / "report.md").read_text().splitlines()[:5]))
    return code


if __name__ == "__main__":
    raise SystemExit(main())
