from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cris_edge.backends.base import DeviceReport
from cris_edge.doctor.npu import RuntimeState, drivers, prospects


def test_drivers_are_read_from_the_kernel(tmp_path: Path) -> None:
    assert drivers(tmp_path) == ()
    driver = tmp_path / "sys/bus/pci/drivers/intel_vpu"
    driver.mkdir(parents=True)
    device = tmp_path / "sys/class/accel/accel0/device"
    device.mkdir(parents=True)
    (device / "driver").symlink_to(driver)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/fastrpc-cdsp").touch()
    assert drivers(tmp_path) == ("Intel NPU (driver intel_vpu, accel0)", "Qualcomm Hexagon (FastRPC)")


def test_prospects_of_a_bundle() -> None:
    bundle: Any = SimpleNamespace(manifest=SimpleNamespace(runtimes={"onnxruntime": {}, "qnn": {}, "openvino": {}}))
    states = [
        RuntimeState("onnxruntime", usable=True, devices=(DeviceReport("CPU"),)),
        RuntimeState("qnn", usable=True, devices=(DeviceReport("emulator"),)),
        RuntimeState("openvino", usable=False, advice="install it"),
    ]
    found = prospects(bundle, states, {"qnn": {"soc": "SM8650"}})
    assert [(entry.runtime, entry.devices) for entry in found] == [
        ("onnxruntime", ("CPU",)),
        ("qnn", ("emulator",)),
        ("openvino", ()),
    ]
    assert "SM8650" in found[1].message
    assert found[2].message == "install it"
