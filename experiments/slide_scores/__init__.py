"""Scores of whole slides: maps, a score per slide, detections."""
