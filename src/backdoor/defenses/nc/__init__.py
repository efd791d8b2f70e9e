"""Neural Cleanse (Wang et al., IEEE S&P 2019): reverse a trigger for each class, judge by their sizes, unlearn."""

from backdoor.defenses.nc.figure import draw_triggers
from backdoor.defenses.nc.method import Costs, adjust, anomaly_indices, outliers, stamp
from backdoor.defenses.nc.module import TriggerUnlearning, stamp_share
from backdoor.defenses.nc.search import Reversed, Search, reverse_triggers
from backdoor.defenses.nc.stage import Invert

__all__ = [
    "Costs",
    "Invert",
    "Reversed",
    "Search",
    "TriggerUnlearning",
    "adjust",
    "anomaly_indices",
    "draw_triggers",
    "outliers",
    "reverse_triggers",
    "stamp",
    "stamp_share",
]
