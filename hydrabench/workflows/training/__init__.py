"""The commands `train`, `prune` and `finetune`: one phase in its run folder, and the loop inside it."""
