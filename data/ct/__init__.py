"""CT volumes with lymph-node masks: reading, resampling, nodes, a phantom."""
