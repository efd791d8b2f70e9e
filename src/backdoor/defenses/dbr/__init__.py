"""D-BR: distinguish, then remove the backdoor (Chen, Wu, Wang, NeurIPS 2022)."""

from backdoor.defenses.dbr.module import UnlearnRelearn

__all__ = ["UnlearnRelearn"]
