"""What experiments.predict and experiments.export share."""
