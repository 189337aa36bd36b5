"""What a processor is called, and which numbers follow from its features."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from workers.device.processor import AVX2_ALONE, MASK, Processor, this_processor

MAKEFILE = Path(__file__).parents[3] / "Makefile"


def processor(*features: str, machine: str = "x86_64") -> Processor:
    return Processor(machine=machine, name="Some CPU", features=frozenset(features))


@pytest.mark.parametrize(
    ("features", "machine", "bits"),
    [
        ((), "x86_64", 7),
        (("avx2",), "AMD64", 7),
        (("avx2", "avx512_f"), "x86_64", 7),
        (("avx2", "avx_vnni"), "x86_64", 8),
        (("avx2", "avx512_f", "avx512_vnni"), "x86_64", 8),
        (("avx2", "avx512_f", "amx_int8"), "x86_64", 8),
        (("neon",), "aarch64", 8),
    ],
)
def test_bits_keep_sums_of_16_bits_from_saturating(features: tuple[str, ...], machine: str, bits: int) -> None:
    assert processor(*features, machine=machine).int8_weight_bits == bits
    assert 255 * (2 ** (7 - 1) - 1) * 2 < 2**15


def test_processors_of_one_name_differ_by_their_kind() -> None:
    assert processor("avx2").kind == "Some CPU (AVX2)"
    assert processor("avx2", "avx512_f", "avx512_vnni", "avx512_bf16").kind == "Some CPU (AVX2, AVX-512, VNNI, BF16)"
    assert processor(machine="riscv64").kind == "Some CPU (riscv64)"


def test_mask_takes_features_away_and_adds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_vnni": True, "cpu_name": "x"})
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.delenv(MASK, raising=False)
    assert this_processor().features == {"avx2", "avx512_vnni"}
    monkeypatch.setenv(MASK, "avx2, amx_int8")
    assert this_processor().features == {"avx2"}
    monkeypatch.setenv(MASK, "")
    assert this_processor().features == frozenset()


def test_masked_process_has_neither_vnni_nor_bf16() -> None:
    code = (
        "from workers.device.processor import this_processor as p; print(p().kind, p().int8_weight_bits, p().has_bf16)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **AVX2_ALONE}, capture_output=True, text=True, check=True
    )
    assert re.search(r"\((AVX2|x86_64|aarch64)\) [78] False$", done.stdout.strip())


def test_makefile_masks_what_the_code_says() -> None:
    written = re.search(r"^AVX2_ALONE := ((?:.*\\\n)*.*)$", MAKEFILE.read_text(), re.MULTILINE)
    assert written is not None
    assert written[1].replace("\\", "").split() == [f"{name}={value}" for name, value in AVX2_ALONE.items()]
