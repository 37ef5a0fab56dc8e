"""TransferMap: what fine-tuning on one domain is forecast to move in the others, and why."""
