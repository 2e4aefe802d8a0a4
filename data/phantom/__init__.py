"""The embedded cohorts: H&E-like lymph-node slides whose truth is known."""

from data.phantom.cohort import EXTERNAL, make
from data.phantom.slide import LABELS, Spec, render

__all__ = ['EXTERNAL', 'LABELS', 'Spec', 'make', 'render']
