"""Calibration: how well short trainings rank networks, beside the best that is possible.

``calibrate(read("truth.parquet"))`` is the whole report; ``proxy_tau(scores, truths)`` one number of it.
"""

from nas.proxy_fidelity.calibration.agreement import Estimate, proxy_tau, tau
from nas.proxy_fidelity.calibration.analysis import Report, calibrate
from nas.proxy_fidelity.calibration.recommending import Recommendation, general, recommend
from nas.proxy_fidelity.calibration.table import read

__all__ = ["Estimate", "Recommendation", "Report", "calibrate", "general", "proxy_tau", "read", "recommend", "tau"]
