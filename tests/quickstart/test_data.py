"""The quickstart's data and model: real images, a fixed split, and a processor that says how the model was fed."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from hf_mhe.quickstart.data import digits, prepare
from hf_mhe.quickstart.model import build_model, build_processor, widened


def test_the_digits_are_all_there_once() -> None:
    """Else an image would be in both splits, or lost, and the accuracy would mean something else."""
    data = digits()
    assert {name: len(split) for name, split in data.items()} == {"train": 1437, "test": 360}
    assert data["train"].features["label"].names == [str(digit) for digit in range(10)]
    found = sorted(
        (np.asarray(row["image"]).astype(int).tobytes(), row["label"]) for split in data.values() for row in split
    )
    bunch = load_digits()
    # 0 to 16 spread over 0 to 255 by integers; ink 8 lies on a half, 127.5, which may be rounded either way.
    expected = sorted(
        (((image.astype(int) * 255 + 8) // 16).tobytes(), int(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    assert len(found) == 1797
    differences = max(
        abs(np.frombuffer(a, int) - np.frombuffer(b, int)).max()
        for (a, _), (b, _) in zip(found, expected, strict=True)
    )
    assert differences <= 1
    assert [label for _, label in found] == [label for _, label in expected]


def test_the_model_is_fed_the_image_enlarged_and_centred() -> None:
    """Else a user who feeds the saved model by its processor would feed it something that it never saw."""
    data = digits()
    prepared = prepare(data, build_processor())
    image = np.asarray(data["test"][7]["image"], dtype=np.float32)
    expected = image.repeat(4, axis=0).repeat(4, axis=1) / 255 * 2 - 1
    row = prepared["test"][7]
    assert row["pixel_values"].shape == (1, 32, 32)
    np.testing.assert_allclose(row["pixel_values"][0].numpy(), expected, atol=1e-6)
    assert int(row["labels"]) == data["test"][7]["label"]


def test_the_seed_makes_the_start() -> None:
    """Else "the same initial weights" would be a matter of what ran before."""
    import torch

    first, second, other = build_model(3), build_model(3), build_model(4)
    pairs = list(zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.classifier[1].weight, other.classifier[1].weight)


def test_copies_compute_what_the_narrow_model_does() -> None:
    """Else the two trainings would begin with a damaged model, and copies would be no copies."""
    import torch

    from hf_mhe import analyze

    narrow = build_model(3, channels=2)
    images = torch.randn(5, 1, 32, 32)
    narrow.train()(images)  # statistics of batch normalization that are not those of the start
    wide = widened(narrow, copies=3)
    assert wide.config.hidden_sizes == [6, 12]
    torch.testing.assert_close(wide.eval()(images).logits, narrow.eval()(images).logits)
    for group in analyze(wide).competing:
        assert group.coincident == (0 if group.role == "output" else group.n), group.name  # of three: three pairs
