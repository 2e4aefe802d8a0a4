"""Parts of experiments.predict and experiments.export."""
