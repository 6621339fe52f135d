"""From nccl-tests measurements to a machine file, and from a machine file to how well it predicts measurements."""

from parity.calibrate.check import Check, CheckRow, check, check_points, predict, predicted
from parity.calibrate.held_out import held_out
from parity.calibrate.measurements import CalibrationError, Measurement
from parity.calibrate.peers import PeerRow, compare_with_peers
from parity.calibrate.run import Calibration, calibrate, calibrate_from_logs, check_file, read_measurements, table

__all__ = [
    "Calibration",
    "CalibrationError",
    "Check",
    "CheckRow",
    "Measurement",
    "PeerRow",
    "calibrate",
    "calibrate_from_logs",
    "check",
    "check_file",
    "check_points",
    "compare_with_peers",
    "held_out",
    "predict",
    "predicted",
    "read_measurements",
    "table",
]
