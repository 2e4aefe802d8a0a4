"""Cross-validation of bag models: cohort, checks, training, second cohort."""
