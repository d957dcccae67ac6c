"""What the machine's NVIDIA GPUs say of themselves, through the driver's own library.

``libnvidia-ml.so.1`` comes with every driver, so nothing has to be installed. Where it is not
there, or a GPU does not tell something, there is nothing to show. Names and units as in NVML's
API reference: milliwatts, millijoules, per cent.
"""

from __future__ import annotations

import ctypes
from typing import Any

from headrace.telemetry.snapshot import GpuReading

LIBRARY = "libnvidia-ml.so.1"

_UUID_BYTES = 96
"""``NVML_DEVICE_UUID_V2_BUFFER_SIZE``."""


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class GpuReader:
    """Reads all GPUs. ``library`` is an argument so that a test can describe a machine."""

    def __init__(self, library: Any = None) -> None:
        self._nvml = library if library is not None else _load()
        self._gpus = self._find() if self._nvml is not None else []

    def read(self) -> list[GpuReading]:
        """One reading for each GPU; 0 for what it does not tell."""
        return [self._reading(uuid, handle) for uuid, handle in self._gpus]

    def _find(self) -> list[tuple[str, ctypes.c_void_p]]:
        nvml, count = self._nvml, ctypes.c_uint()
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return []
        found = []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            uuid = ctypes.create_string_buffer(_UUID_BYTES)
            if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
                continue
            if not nvml.nvmlDeviceGetUUID(handle, uuid, _UUID_BYTES):
                found.append((uuid.value.decode(), handle))
        return found

    def _reading(self, uuid: str, handle: ctypes.c_void_p) -> GpuReading:
        busy, memory = _Utilization(), _Memory()
        power, limit = ctypes.c_uint(), ctypes.c_uint()
        energy = ctypes.c_ulonglong()
        for name, into in (
            ("nvmlDeviceGetUtilizationRates", busy),
            ("nvmlDeviceGetMemoryInfo", memory),
            ("nvmlDeviceGetPowerUsage", power),
            ("nvmlDeviceGetEnforcedPowerLimit", limit),
            ("nvmlDeviceGetTotalEnergyConsumption", energy),
        ):
            # What a GPU does not support leaves the value as it is: 0.
            getattr(self._nvml, name)(handle, ctypes.byref(into))
        return GpuReading(
            uuid,
            utilization=busy.gpu / 100,
            memory_total_bytes=memory.total,
            memory_used_bytes=memory.used,
            power_watts=power.value / 1000,
            power_limit_watts=limit.value / 1000,
            energy_joules=energy.value / 1000,
        )


def _load() -> Any:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError:
        return None
