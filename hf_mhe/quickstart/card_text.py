"""What the quickstart itself says in the model card; the numbers below it are the hub room's."""

from __future__ import annotations

from hf_mhe.quickstart.data import SOURCE_SIDE, TEST_IMAGES, TRAIN_IMAGES
from hf_mhe.quickstart.model import COPIES, NARROW
from hf_mhe.quickstart.train import BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY


def opening(seed: int, epochs: int, narrow_accuracy: float) -> str:
    """The card's first section: the data, what "before" means, and how to feed the model."""
    return f"""---
pipeline_tag: image-classification
---

# ResNet on handwritten digits, grown by copies and trained with minimum hyperspherical energy

Made by `hf-mhe quickstart --seed {seed} --epochs {epochs}`. A small ResNet, trained on {TRAIN_IMAGES} of the 1797
handwritten digits that scikit-learn ships ({SOURCE_SIDE} x {SOURCE_SIDE} pixels; E. Alpaydin and C. Kaynak, "Optical
Recognition of Handwritten Digits", UCI, 1998, doi:10.24432/C50P49) and tested on the other {TEST_IMAGES}.

A model with stages of {NARROW} and {2 * NARROW} channels came first, to an accuracy of {100 * narrow_accuracy:.2f} %.
Every channel was then copied {COPIES} times, which computes the same, and the wide model trained on twice, from
the same copies on the same batches (each time AdamW, {epochs} epochs, learning rate {LEARNING_RATE:g} falling
linearly to 0, weight decay {WEIGHT_DECAY:g}, batches of {BATCH_SIZE}). **Before** stands for `transformers.Trainer`,
whose model is in `plain/`: copies get the same gradient, and stay copies. **After** stands for
`hf_mhe.MHETrainer`, whose model is at the top of this repository: copies repel each other. One run of each: no error
bars. New channels in place of copies are another way, which was not tried here.
[comparison.html](comparison.html) sets the two side by side.

The model takes grayscale images, light strokes on a black ground. `pipeline("image-classification")` would hand it
RGB, so call processor and model directly. In this folder, or in a copy of the repository:

```python
from PIL import Image
from sklearn.datasets import load_digits
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained(".")
model = AutoModelForImageClassification.from_pretrained(".")  # the other one: subfolder="plain"
digit = Image.fromarray((load_digits().images[0] * 255 / 16).astype("uint8"))
inputs = processor(digit, return_tensors="pt")
print(model.config.id2label[model(**inputs).logits.argmax().item()])
```
"""
