"""The embedded cohort: H&E-like lymph-node slides whose truth is known."""

from data.phantom.cohort import make
from data.phantom.slide import LABELS, Spec, render

__all__ = ['LABELS', 'Spec', 'make', 'render']
