"""LF: a smooth, low-frequency trigger."""

from backdoor.attacks.lf.method import dct_basis, low_pass, pass_band, project, smooth_pattern, spectrum
from backdoor.attacks.lf.stage import SmoothPattern

__all__ = ["SmoothPattern", "dct_basis", "low_pass", "pass_band", "project", "smooth_pattern", "spectrum"]
