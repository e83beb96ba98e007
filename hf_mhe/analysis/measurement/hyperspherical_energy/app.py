"""The page of the measurement on the Hub, as `evaluate` makes it for its own modules; it needs gradio."""

from pathlib import Path

import evaluate
from evaluate.utils import launch_gradio_widget

module = evaluate.load(str(Path(__file__).resolve().parent / "hyperspherical_energy.py"))
launch_gradio_widget(module)
