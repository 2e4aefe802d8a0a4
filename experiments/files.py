"""Writes texts and tables so that they are there in full or not at all."""

from collections.abc import Iterable, Sequence
import csv
import pathlib

from data import atomic


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text in UTF-8."""
  with atomic.replacing(path) as part:
    part.write_text(text, encoding='utf-8')


def write_rows(path: pathlib.Path, rows: Iterable[Sequence]) -> None:
  """Writes the rows of a CSV file in UTF-8, its header first."""
  with (
    atomic.replacing(path) as part,
    part.open('w', newline='', encoding='utf-8') as f,
  ):
    csv.writer(f).writerows(rows)
