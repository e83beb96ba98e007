"""Layers with clusters of copies whose rows, number of pairs and size are known because they were put there."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Planted(NamedTuple):
    """A layer and what is in it.

    Attributes:
        weight: `(n, d)`.
        clusters: the rows of each cluster, the largest first, then by its first row.
        pairs: how many pairs of rows are within a cluster.
        distinct: how many rows there are if each cluster counts once.
    """

    weight: Tensor
    clusters: tuple[tuple[int, ...], ...]
    pairs: int
    distinct: int


def plant(n: int, d: int, *, sizes: list[int], space: str, seed: int, dtype: torch.dtype = torch.float32) -> Planted:
    """Random rows, some of which are copies of others, in clusters of these sizes at random places.

    Every other cluster is of exact copies, rescaled by powers of 2; the rest are closer than the cosine 0.99, in every
    dtype. In half space every third member of a cluster is mirrored. Rows of different clusters do not reach 0.95:
    that random ones do has a chance below 1e-4 for 3,000 x 24, and far below for 200,000 x 64.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, d, generator=generator)
    places = torch.randperm(n, generator=generator)
    clusters, start = [], 0
    for number, size in enumerate(sizes):
        rows = places[start : start + size]
        start += size
        centre = weight[rows[0]].clone()
        noise = 0.04 / math.sqrt(d) * float(number % 2)
        moved = centre + noise * centre.norm() * torch.randn(size, d, generator=generator)
        scale = 2.0 ** torch.randint(-4, 5, (size, 1), generator=generator)
        if space == "half":
            scale[2::3] *= -1
        weight[rows] = scale * moved
        clusters.append(tuple(sorted(rows.tolist())))
    return Planted(
        weight.to(dtype),
        tuple(sorted(clusters, key=lambda cluster: (-len(cluster), cluster))),
        sum(size * (size - 1) // 2 for size in sizes),
        n - sum(sizes) + len(sizes),
    )
