"""Latency of PyTorch's encoder with unrolled attention, relative to its fused kernels, in fp32 on the CPU.

python benchmarks/attention.py
"""

import copy
import statistics
import time

import torch
from torch import nn

from workers.device import environment
from workers.model.attention import unroll_attention

#: Features, heads, features of the feed-forward network, samples, tokens.
SHAPES = ((256, 4, 1024, 1, 32), (512, 8, 2048, 1, 128), (512, 8, 2048, 8, 128), (768, 12, 3072, 4, 197))
ROUNDS = 21


def seconds(model: nn.Module, x: torch.Tensor) -> float:
    start = time.perf_counter()
    model(x)
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(environment.usable_cores())
    print(f"{environment.cpu_hardware()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}")
    for features, heads, hidden, samples, tokens in SHAPES:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(features, heads, hidden, batch_first=True)
        fused, x = nn.TransformerEncoder(layer, 4).eval(), torch.randn(samples, tokens, features)
        unrolled = copy.deepcopy(fused)
        assert unroll_attention(unrolled, lambda model, x=x: model(x)) == {}
        with torch.inference_mode():
            seconds(fused, x), seconds(unrolled, x)
            pairs = [(seconds(fused, x), seconds(unrolled, x)) for _ in range(ROUNDS)]
        ratio = statistics.median(new / old for old, new in pairs)
        fused_ms = 1e3 * statistics.median(old for old, _ in pairs)
        print(f"{samples} x {tokens} tokens of {features}: fused {fused_ms:.2f} ms, unrolled / fused {ratio:.2f}")


if __name__ == "__main__":
    main()
