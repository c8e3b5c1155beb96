"""Tables of the ablations."""

from __future__ import annotations

from dod.evaluation.ablation_table import PLAIN, ROWS, AblationVariant, as_markdown
from dod.evaluation.metrics import CORE


def test_differences_refer_to_the_first_row() -> None:
    def values(psnr: float, ssim: float) -> dict[str, float]:
        return {"psnr": psnr, "ssim": ssim}

    results = {row.variant: {False: values(20.0, 0.5), True: values(25.0, 0.7)} for row in ROWS}
    results[PLAIN] = {False: values(18.0, 0.4), True: values(24.5, 0.6)}
    results[AblationVariant("unet", 16)] = {False: values(20.0, 0.5), True: values(26.0, 0.7)}
    printed = as_markdown(results, [CORE["ssim"]])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line]
    found = {line[0]: line[1:] for line in lines}
    assert found["CLoRA and DEM"] == ["25.00", "+7.00", "0.7000", "31.87", "+8.82"]
    assert found["DEM"] == ["24.50", "+6.50", "0.6000", "31.83", "+8.78"]
    assert found["CLoRA in the UNet only"] == ["25.00", "+0.00", "0.7000", "31.87", "+1.19"]
    assert found["rank 4"][3:] == ["collapses", "-"] and found["rank 16"][:2] == ["26.00", "+1.00"]
