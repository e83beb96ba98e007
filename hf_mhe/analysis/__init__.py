"""From a model in memory, on disk or on the Hub to a report of how redundantly its neurons point.

Reading checkpoints as a stream, the analyzer, reports, their comparison, the figures and the HTML page.
"""

from hf_mhe.analysis.analyzer import analyze
from hf_mhe.analysis.checkpoint.reader import CheckpointReader, open_checkpoint
from hf_mhe.analysis.compare import compare
from hf_mhe.analysis.measure import measure, measurement_path
from hf_mhe.analysis.report.comparison import Comparison, ComparisonRow, ComparisonSummary
from hf_mhe.analysis.report.group_energy import GroupEnergy
from hf_mhe.analysis.report.report import EnergyReport
from hf_mhe.analysis.report.stacks import StackEnergy
from hf_mhe.analysis.report.summary import ReportSummary

__all__ = [
    "CheckpointReader",
    "Comparison",
    "ComparisonRow",
    "ComparisonSummary",
    "EnergyReport",
    "GroupEnergy",
    "ReportSummary",
    "StackEnergy",
    "analyze",
    "compare",
    "measure",
    "measurement_path",
    "open_checkpoint",
]
