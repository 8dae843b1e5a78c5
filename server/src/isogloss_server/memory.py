"""How much memory this process holds, as Linux counts it; zeros on other systems."""

from pathlib import Path

STATUS = Path("/proc/self/status")


def resident_mb() -> int:
    """Returns the memory that is resident, pages mapped from files and shared with others included."""
    return _status("VmRSS")


def anonymous_mb() -> int:
    """Returns the memory that is this process's own: what another process with the same model needs as well."""
    return _status("RssAnon")


def _status(name: str) -> int:
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith(f"{name}:")), 0)
