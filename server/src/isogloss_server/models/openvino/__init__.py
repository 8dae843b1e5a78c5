"""Encoders of the BERT family as one padding-free graph on the processor, run by OpenVINO.

OpenVINO reports home when it is imported, from a process that it forks. Where its telemetry package is absent it goes
without; so here, before its first import, that package is made absent in Python's own way: by None in its place.
"""

import sys

if "openvino" not in sys.modules:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
