"""Encoders of the BERT family as one padding-free graph, run by OpenVINO on CPUs.

OpenVINO sends telemetry when it is imported, unless its telemetry package is missing. Before its first import, this
package therefore marks that package as missing, by Python's own means: None in sys.modules.
"""

import sys

if "openvino" not in sys.modules:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
