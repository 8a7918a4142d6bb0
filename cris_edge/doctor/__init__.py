"""What this device can run, and whether a bundle computes here what it computed when it was exported."""

from __future__ import annotations

from cris_edge.doctor.examination import DoctorReport, examine
from cris_edge.doctor.npu import RuntimeState
from cris_edge.doctor.verification import verify

__all__ = ["DoctorReport", "RuntimeState", "examine", "verify"]
