"""What --check does: joins all inputs, lists every problem, trains nothing."""
