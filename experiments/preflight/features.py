"""Reads all features of a cohort before anything is trained."""

from collections.abc import Sequence
from concurrent import futures

from data import packed
from data.features import FeatureError
from experiments.preflight.findings import Findings
from experiments.run import progress


def scan(
  source: packed.Folder | packed.Packed,
  slides: Sequence[str],
  findings: Findings,
) -> None:
  """Finds NaN and infinity, and damage that headers hide."""

  def fault(slide):
    try:
      source.read(slide)
    except FeatureError as e:
      return str(e)
    return None

  with futures.ThreadPoolExecutor() as pool:
    found = progress.bar(
      pool.map(fault, slides),
      desc='reading features',
      total=len(slides),
      unit='slide',
    )
    findings.problems += filter(None, found)
