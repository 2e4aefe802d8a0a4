"""The parts of report.html, one self-contained page per results folder."""
