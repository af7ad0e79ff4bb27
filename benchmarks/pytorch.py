#!/usr/bin/env python3
"""The kernels in PyTorch, on one thread, as somebody would write them there.

Prints nanoseconds a call, the best of many. Exits with 3 where PyTorch has no such thing to compare.
usage: pytorch.py KERNEL HEADS KV_HEADS DIM ROWS CELLS VOCABULARY SECONDS
"""
import sys
import time

try:
    import torch
except ImportError:
    sys.exit(3)

kernel = sys.argv[1]
heads, kv_heads, dim, rows, cells, vocabulary = map(int, sys.argv[2:8])
seconds = float(sys.argv[8])
heads_per_kv = heads // kv_heads
torch.set_num_threads(1)
torch.manual_seed(1)


def probabilities():
    return torch.softmax(2 * torch.randn(heads, rows, cells), dim=-1)


def keys():
    return torch.randn(cells, kv_heads, dim).half()


def attention(mass, entropy):
    p = probabilities()
    inverse = 1 / torch.log(torch.tensor(float(cells)))

    def run():
        if mass:
            p.view(kv_heads, heads_per_kv * rows, cells).sum(1)
        if entropy:
            torch.special.entr(p).sum(-1) * inverse

    return run


def scores():
    q = torch.randn(kv_heads, heads_per_kv * rows, dim)
    k = keys()
    return lambda: torch.softmax(q @ k.float().permute(1, 2, 0) * dim**-0.5, dim=-1).sum(1)


def moments():
    q = torch.randn(kv_heads, heads_per_kv * rows, dim)
    mean, second = torch.zeros(kv_heads, dim), torch.zeros(kv_heads, dim, dim)

    def run():
        mean.mul_(0.7).add_(q.sum(1))
        second.mul_(0.7).add_(q.transpose(1, 2) @ q)

    return run


def fold():
    mean, second = torch.randn(kv_heads, dim), torch.diag_embed(1 + torch.rand(kv_heads, dim))
    ridge = 0.05 * torch.eye(dim)

    def run():
        trace = second.diagonal(dim1=1, dim2=2).mean(1)
        torch.linalg.solve(second + trace[:, None, None] * ridge, mean)

    return run


def gather():
    k, order = keys(), torch.arange(cells)
    return lambda: k[order, 0].float()


def scatter():
    k, order, source = keys(), torch.arange(cells), torch.randn(cells, dim)

    def run():
        k[order, 0] = source.half()

    return run


def merge():
    """Triples of neighbours become one cell: keys rotated to the middle one's position and averaged, values too."""
    k, v = keys(), keys()
    groups = cells // 3
    angle = torch.tensor([-1.0, 0, 1])[:, None] * 10000 ** (-torch.arange(dim // 2) * 2 / dim)
    cos, sin = torch.cos(angle)[None, :, None], torch.sin(angle)[None, :, None]

    def run():
        members = k[: 3 * groups].float().view(groups, 3, kv_heads, dim)
        x, y = members[..., : dim // 2], members[..., dim // 2 :]
        k[:groups] = torch.cat((x * cos - y * sin, x * sin + y * cos), -1).mean(1).half()
        v[:groups] = v[: 3 * groups].float().view(groups, 3, kv_heads, dim).mean(1).half()

    return run


def log_sum_exp():
    x = torch.randn(vocabulary)
    return lambda: torch.logsumexp(x, 0)


KERNELS = {
    "attention_stats": lambda: attention(True, False),
    "attention_stats+entropy": lambda: attention(True, True),
    "attention_stats-entropy-only": lambda: attention(False, True),
    "score_stats": scores,
    "query_moments": moments,
    "fold_direction": fold,
    "gather_cells": gather,
    "scatter_cells": scatter,
    "merge_cells": merge,
    "log_sum_exp": log_sum_exp,
}
if kernel not in KERNELS:
    sys.exit(3)
with torch.inference_mode():
    run = KERNELS[kernel]()
    run()
    best, end = None, time.perf_counter() + seconds
    while best is None or time.perf_counter() < end:  # what takes longer is measured once
        start = time.perf_counter_ns()
        run()
        taken = time.perf_counter_ns() - start
        best = taken if best is None else min(best, taken)
print(best)
