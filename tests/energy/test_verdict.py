"""The verdict on what crowds a layer: planted causes get their word, and a layer without one gets none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_mhe.energy import Potential, minimize_energy, pair_statistics
from hf_mhe.energy.reference.verdict import VERDICTS, crowding_verdict


def random(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def with_copies(n: int, d: int, share: float, noise: float = 0.0) -> Tensor:
    rows = random(n, d)
    copies = round(share * n / 2)
    rows[:copies] = rows[-copies:] + noise * random(copies, d, 1)
    return rows


def verdict(weight: Tensor, space: str = "full") -> str:
    pairs = pair_statistics(weight, Potential(space=space), duplicate_cosine=0.95)  # type: ignore[arg-type]
    return crowding_verdict(
        pairs.n,
        pairs.d,
        equivalent_dimension=pairs.equivalent_dimension,
        mean_cosine=pairs.mean_cosine,
        mean_square_cosine=pairs.mean_square_cosine,
        near_duplicates=pairs.near_duplicates,
        coincident=pairs.coincident,
        clustered=sum(map(len, pairs.clusters)),
        duplicate_cosine=0.95,
        mirrored=space == "half",
    )


PLANTED = {
    "shared direction": [random(512, 64) + 0.5, random(512, 64) + 2, random(2000, 27) + 0.3, random(64, 768) + 0.4],
    "few dimensions": [
        random(512, 8) @ random(8, 64, 1),
        random(1536, 100) @ random(100, 384, 1),
        random(96, 3) @ random(3, 512, 1),
    ],
    "copies": [
        with_copies(1000, 64, 0.05),
        with_copies(1000, 64, 0.05, 0.05),
        with_copies(2048, 256, 0.05, 0.01),
        random(32, 64).repeat(8, 1),
        random(64, 64).repeat(2, 1) + 0.02 * random(128, 64, 1),
        random(1, 32).repeat(50, 1),
        random(1, 32).repeat(50, 1) + 1e-3 * random(50, 32, 1),
        random(1, 32).repeat(2, 1),
        random(40, 2).repeat(3, 1),
    ],
    "spread": [torch.eye(64)[:10], minimize_energy(128, 16), torch.linalg.qr(random(64, 64))[0]],
    "as random": [random(512, 64), random(2000, 27), random(10, 64), random(2, 2), random(3, 768), random(300, 2)],
}


@pytest.mark.parametrize("space", ["full", "half"])
@pytest.mark.parametrize(
    ("cause", "case"), [(cause, k) for cause, found in PLANTED.items() for k in range(len(found))]
)
def test_a_planted_cause_is_named(cause: str, case: int, space: str) -> None:
    """If this fails, a user looks for the wrong thing in a layer, or finds something where there is nothing."""
    assert verdict(PLANTED[cause][case], space) == cause


def test_the_largest_cause_comes_first() -> None:
    """If this fails, a user works on the smaller of two causes."""
    rows = random(1000, 32) @ random(32, 128, 1)
    assert verdict(rows + 0.3 * rows.norm() / 1000).split(", ")[0] in ("few dimensions", "shared direction")
    narrow, leaning = 0.4 * random(1, 128, 2), 4.0 * random(1, 128, 2)
    assert verdict(rows + narrow).split(", ")[0] == "few dimensions"
    assert verdict(rows + leaning).split(", ")[0] == "shared direction"


def test_two_bundles_that_are_opposite_are_copies_on_one_line() -> None:
    """If this fails, neurons of which two are left are not called copies."""
    line = random(1, 32)
    both = torch.cat([line.repeat(25, 1), -line.repeat(25, 1)])
    assert set(verdict(both).split(", ")) == {"copies", "few dimensions"}
    assert verdict(both, "half") == "copies"


def test_rare_copies_are_not_named() -> None:
    """If this fails, one pair in a layer of thousands is called the layer's trouble."""
    assert verdict(with_copies(1000, 64, 0.008)) == "as random"
    assert verdict(with_copies(1000, 64, 0.012)) == "copies"


@pytest.mark.parametrize("seed", range(20))
def test_a_random_draw_has_no_cause(seed: int) -> None:
    """If this fails, chance alone is given a reason."""
    generator = torch.Generator().manual_seed(seed)
    n, d = (int(torch.randint(2, 300, (), generator=generator)) for _ in range(2))
    assert verdict(random(n, d, seed)) == "as random"


def test_it_is_the_same_after_a_rotation_a_scale_and_another_dtype() -> None:
    """If this fails, the word depends on how a layer is written down."""
    for cause, cases in PLANTED.items():
        rotation = torch.linalg.qr(random(cases[0].shape[1], cases[0].shape[1], 5))[0]
        lengths = torch.rand(len(cases[0]), 1, generator=torch.Generator().manual_seed(6)) + 0.1
        assert verdict(lengths * (cases[0] @ rotation)) == cause
        assert verdict(cases[0].bfloat16()) == cause


def test_every_word_is_in_the_vocabulary() -> None:
    """If this fails, a program that reads verdicts meets a word that no document has."""
    assert set(PLANTED) == set(VERDICTS)
