"""Phantom patches of lymphatic invasion: emboli and what is taken for them."""

from data.invasion_phantom.cohort import CLASSES, MPP, SIZE, Patches, make

__all__ = ['CLASSES', 'MPP', 'SIZE', 'Patches', 'make']
