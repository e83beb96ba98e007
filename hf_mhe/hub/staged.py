"""A folder that is filled whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_mhe.errors import MHEError

# Weights of an earlier save that a loader would take up, or trip over, beside the new ones. An adapter's config is one
# of them: where it is, transformers loads the adapter on its base, and not the model beside it.
STALE_WEIGHTS = re.compile(
    r"(model|pytorch_model|adapter_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?|adapter_config\.json"
)


@contextmanager
def staged(target: Path, *, begin_with: Iterable[str] = (), replaced: Iterable[str] = ()) -> Iterator[Path]:
    """Give an empty folder to write into, and on success move its content to `target`; on failure, drop it.

    The files in `begin_with` are copied from the target at first, where it has them. With the move go the target's
    files in `replaced` and its weights, as far as there are no new ones in their place; all others stay.

    Raises:
        MHEError: the target cannot be written to.
    """
    target = target.absolute()
    above = next(path for path in (target, *target.parents) if path.is_dir())
    try:
        # In the target or the folder that it will lie in, so that the files are renamed into place and not copied.
        scratch = tempfile.mkdtemp(dir=above, prefix=".hf_mhe-")
    except OSError as error:
        raise MHEError(f"{target} cannot be written to: {error.strerror or error}") from error
    try:
        staging = Path(scratch) / target.name  # its name may be what a model without another goes by
        staging.mkdir()
        for name in begin_with:
            if (target / name).is_file():
                shutil.copy2(target / name, staging / name)
        yield staging
        _move(staging, target, set(replaced))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _move(staging: Path, target: Path, replaced: set[str]) -> None:
    new = sorted(path.relative_to(staging) for path in staging.rglob("*") if path.is_file())
    names = {path.as_posix() for path in new}
    target.mkdir(parents=True, exist_ok=True)
    stale = {path.name for path in target.iterdir() if STALE_WEIGHTS.fullmatch(path.name)}
    for name in (stale | replaced) - names:
        (target / name).unlink(missing_ok=True)
    for path in new:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / path, target / path)
