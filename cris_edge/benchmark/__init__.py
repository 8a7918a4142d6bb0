"""Benchmarks: latency, throughput, start-up time, memory and accuracy of bundles on this machine.

Imports nothing: start-up time and memory are measured in worker processes and must not include the harness.
"""
