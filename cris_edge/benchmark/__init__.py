"""Latency, throughput, start-up, memory and accuracy of bundles on this device.

Nothing is imported here: a worker's start-up time and memory are measured, and must not include the harness.
"""
