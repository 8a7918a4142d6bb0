"""Diagnosis of this machine, and verification of bundles on it."""

from __future__ import annotations

from cris_edge.doctor.diagnosis import DoctorReport, examine
from cris_edge.doctor.npu import RuntimeState
from cris_edge.doctor.verification import verify

__all__ = ["DoctorReport", "RuntimeState", "examine", "verify"]
