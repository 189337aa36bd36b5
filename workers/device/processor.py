"""The processor of this machine: its model, its features, and the range in which its int8 products are exact."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

#: Environment variable that masks the processor's features: a comma-separated list of those to keep.
MASK = "AUTOTUNE_CPU_FEATURES"

#: Environment for a process that should see only AVX2, as on processors before VNNI. ``MASK`` masks the features that
#: we read, the other variables those that PyTorch's kernel libraries read when they are loaded.
AVX2_ALONE = {
    MASK: "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}

#: Features that affect the choice of kernels or weight bits: PyTorch's name -> display name.
_FEATURES = {
    "avx2": "AVX2",
    "avx512_f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "BF16",
    "amx_int8": "AMX-INT8",
    "amx_bf16": "AMX-BF16",
    "neon": "NEON",
    "dotprod": "DOTPROD",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
}
_X86_MACHINES = ("x86_64", "AMD64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """One processor model and its features."""

    #: Architecture as ``platform.machine()`` names it, such as ``x86_64`` or ``aarch64``.
    machine: str
    #: Model name for people. Virtual machines often report one name for several generations.
    name: str
    #: Features by PyTorch's names; only those that affect the choice of kernels or weight bits.
    features: frozenset[str]

    @property
    def is_x86(self) -> bool:
        """Whether this is an x86-64 processor."""
        return self.machine in _X86_MACHINES

    @property
    def kind(self) -> str:
        """Model name and features, for example ``AMD EPYC (AVX2)``. Measurements are comparable within a kind only."""
        names = [name for feature, name in _FEATURES.items() if feature in self.features]
        return f"{self.name} ({', '.join(names) or self.machine})"

    @property
    def has_vnni(self) -> bool:
        """Whether an instruction sums int8 products in 32 bits."""
        return bool(self.features & {"avx512_vnni", "avx_vnni", "amx_int8"})

    @property
    def has_bf16(self) -> bool:
        """Whether an x86 instruction multiplies bf16."""
        return bool(self.features & {"avx512_bf16", "amx_bf16"})

    @property
    def int8_weight_bits(self) -> int:
        """Bits of int8 weights whose products with uint8 inputs are exact: 8, or 7 on x86 without VNNI.

        Without VNNI, x86 kernels add two products in 16 bits, which may saturate. Weights in [-63, 63] prevent this:
        255 x 63 x 2 = 32,130 < 32,767.
        """
        return 8 if self.has_vnni or not self.is_x86 else 7

    def saturates(self, weight_bits: int) -> str | None:
        """Return why products of int8 weights with ``weight_bits`` bits would be wrong, or None if they are exact."""
        if weight_bits <= self.int8_weight_bits:
            return None
        return "needs VNNI, which this processor lacks; products of 8-bit weights would saturate"


def this_processor() -> Processor:
    """Return the processor of this machine, masked by the environment variable ``AUTOTUNE_CPU_FEATURES`` if it is set.

    The mask cannot add features that the processor lacks.
    """
    capabilities: Mapping[str, object] = torch.cpu.get_capabilities()
    features = {feature for feature in _FEATURES if capabilities.get(feature)}
    mask = os.environ.get(MASK)
    if mask is not None:
        features &= {feature.strip() for feature in mask.split(",")}
    return Processor(machine=platform.machine(), name=_model_name(), features=frozenset(features))


def _model_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
