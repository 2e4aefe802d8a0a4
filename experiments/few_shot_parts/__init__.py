"""The few-shot study of FW-RD: cohorts, trainings, tables, slides, figures."""
