"""NAD: Neural Attention Distillation (Li et al., ICLR 2021, arXiv 2101.05930)."""

from backdoor.defenses.nad.method import attention, attention_layers, captured, distillation_loss
from backdoor.defenses.nad.module import AttentionDistillation

__all__ = ["AttentionDistillation", "attention", "attention_layers", "captured", "distillation_loss"]
