"""What a run reports: metrics of a step, a JSONL log, a live display, trackers."""

from rlora.tracking.log import Health, MetricsLog
from rlora.tracking.metrics import StepMetrics
from rlora.tracking.tracker import TrackedRun, Tracker, TrackingConfig

__all__ = ["Health", "MetricsLog", "StepMetrics", "TrackedRun", "Tracker", "TrackingConfig"]
