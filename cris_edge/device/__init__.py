"""Facts about this machine: CPU, memory and cache folders."""
