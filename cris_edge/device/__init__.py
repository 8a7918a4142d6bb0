"""Facts about this device: processor, memory, cache folders."""
