"""What a run reports: metrics of a step, a JSONL log, a live display, wandb."""

from rlora.tracking.log import MetricsLog, TrackingConfig
from rlora.tracking.metrics import StepMetrics

__all__ = ["MetricsLog", "StepMetrics", "TrackingConfig"]
