"""scikit-learn's handwritten digits as a `datasets.DatasetDict`: real images that ship with a dependency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_mhe.extras import require_extra

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers.image_processing_utils import BaseImageProcessor

LABELS = tuple(str(digit) for digit in range(10))
SOURCE_SIDE = 8  # pixels
MODEL_SIDE = 32  # pixels
TRAIN_IMAGES, TEST_IMAGES = 1437, 360

# The split is part of the data, as on the Hub: it does not change with the seed of a run.
_SPLIT_SEED = 0


def check_installed() -> None:
    """Ask for all that the quickstart needs beside the package's own dependencies, before any of it is imported.

    Raises:
        MHEError: a package of the extra `quickstart` is not installed.
    """
    require_extra("quickstart", "quickstart", "datasets", "matplotlib", "PIL", "sklearn")


def digits() -> DatasetDict:
    """Load the 1,797 digits of the UCI optical recognition test set that scikit-learn carries.

    Returns `train` (1,437 rows) and `test` (360 rows, stratified by digit, the same for every seed). Features:
    `image`, an 8 x 8 grayscale `Image`, and `label`, a `ClassLabel` named "0" to "9". Source: E. Alpaydin and C.
    Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998, doi:10.24432/C50P49.
    """
    import numpy as np
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
    from PIL import Image as PILImage
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    # The source counts ink in a 4 x 4 cell, 0 to 16; an 8-bit image wants 0 to 255.
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    features = Features({"image": Image(mode="L"), "label": ClassLabel(names=list(LABELS))})

    def rows(index: np.ndarray) -> Dataset:
        images = [PILImage.fromarray(pixels[i]) for i in index]
        return Dataset.from_dict({"image": images, "label": bunch.target[index].tolist()}, features=features)

    train, test = train_test_split(
        np.arange(len(pixels)),
        train_size=TRAIN_IMAGES,
        test_size=TEST_IMAGES,
        random_state=_SPLIT_SEED,
        stratify=bunch.target,
    )
    return DatasetDict({"train": rows(np.sort(train)), "test": rows(np.sort(test))})


def prepare(dataset: DatasetDict, processor: BaseImageProcessor) -> DatasetDict:
    """Run every image through `processor` once.

    Returns the same splits with torch-formatted columns `pixel_values` (1, 32, 32) float32 and `labels` int64.
    """
    from datasets import Array3D, ClassLabel, Features

    features = Features(
        {"pixel_values": Array3D((1, MODEL_SIDE, MODEL_SIDE), "float32"), "labels": ClassLabel(names=list(LABELS))}
    )

    def process(batch: dict) -> dict:
        return {"pixel_values": processor(batch["image"])["pixel_values"], "labels": batch["label"]}

    prepared = dataset.map(
        process, batched=True, remove_columns=["image", "label"], features=features, keep_in_memory=True
    )
    return prepared.with_format("torch")
