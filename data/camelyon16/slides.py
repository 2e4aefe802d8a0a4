"""Which slides CAMELYON16 has, and what is known of each.

Litjens et al., "1399 H&E-stained sentinel lymph node sections of breast cancer
patients: the CAMELYON dataset", GigaScience 2018.
"""

from collections.abc import Collection
import csv
import dataclasses
import pathlib
import re

from data.labelled_tiles import TileError
from data.slides import SlideError, list_slides, slide_id

LABELS = ('normal', 'tumor')

# Slides that results are not reported on, and why.
EXCLUDED = {
  'test_049': 'a duplicate of another slide, withdrawn',
  'test_114': 'not all of its tumour is annotated',
}
# Slides whose name tells the wrong label.
RELABELLED = {'normal_086': 'tumor'}

_NAME = re.compile(r'(normal|tumor|test)_(\d{3})')
_SIZES = {'Normal': ('None',), 'Tumor': ('Macro', 'Micro')}
# Not in every release.
_OPTIONAL = frozenset({'normal_086', 'normal_144'})
OFFICIAL = frozenset(
  f'{kind}_{i:03d}'
  for kind, count in (('normal', 160), ('tumor', 110), ('test', 130))
  for i in range(1, count + 1)
)


@dataclasses.dataclass(frozen=True)
class KnownSlide:
  """A slide of CAMELYON16.

  Attributes:
    id: in lower case, 'tumor_001'.
    part: 'train' or 'test', the organisers'.
    label: one of `LABELS`.
    path: of the slide file.
  """

  id: str
  part: str
  label: str
  path: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Cohort:
  """Slides to work with.

  Attributes:
    slides: in the order of their ids.
    left_out: why files of the folder, or slides asked for, are not in `slides`,
      by slide id.
    relabelled: ids of slides whose label is not that of their name.
  """

  slides: tuple[KnownSlide, ...]
  left_out: dict[str, str]
  relabelled: tuple[str, ...]


def part(slide: str) -> str:
  """Returns the organisers' part of a slide id, 'train' or 'test'.

  Raises:
    TileError: if the id is not one of CAMELYON16.
  """
  found = _NAME.fullmatch(slide)
  if found is None:
    raise TileError(
      f'{slide}: not a slide of CAMELYON16; their ids are normal_001, '
      'tumor_001, test_001 and so on'
    )
  return 'test' if found[1] == 'test' else 'train'


def read_reference(path: pathlib.Path | str) -> dict[str, str]:
  """Returns the labels of the test slides, by id in lower case.

  Args:
    path: test_reference.csv as released: slide, Tumor or Normal, the kind of
      cancer of the patient, Macro, Micro or None, without a header.

  Raises:
    TileError: naming every line that is not of this form, and slides named
      twice.
  """
  path = pathlib.Path(path)
  try:
    with path.open(newline='', encoding='utf-8-sig') as f:
      reader = csv.reader(f)
      rows = [(reader.line_num, row) for row in reader]
  except (OSError, UnicodeDecodeError, csv.Error) as e:
    raise TileError(f'{path}: cannot be read as CSV: {e}') from e
  labels, problems = {}, []
  for line, cells in rows:
    cells = [cell.strip() for cell in cells]
    if not any(cells):
      continue
    name = slide_id(cells[0]).lower()
    if (
      len(cells) != 4
      or not name.startswith('test_')
      or not _NAME.fullmatch(name)
      or cells[3] not in _SIZES.get(cells[1], ())
    ):
      problems.append(
        f'line {line}: found {",".join(cells)[:80]!r}; such as '
        'Test_001,Tumor,IDC,Macro or Test_003,Normal,DCIS,None is needed'
      )
    elif name in labels:
      problems.append(f'line {line}: {name} a second time')
    else:
      labels[name] = cells[1].lower()
  if not rows:
    problems.append('no rows')
  if problems:
    raise TileError.listing(problems, str(path))
  return labels


def find(
  slides_dir: pathlib.Path | str,
  reference_csv: pathlib.Path | str | None,
  *,
  wanted: Collection[str] | None = None,
  keep_excluded: bool = False,
) -> Cohort:
  """Returns slides of a folder with their parts and labels.

  Args:
    slides_dir: searched as by `slides.list_slides`; names count in any case.
      Masks, `<slide>_mask.tif`, may lie there, too.
    reference_csv: labels of test slides, see `read_reference`; None if no test
      slide is wanted.
    wanted: ids of slides that must be there; by default all official ones but
      normal_086 and normal_144, which not every release has. Others that are
      there are left out; by default, further ones of the training part, such
      as tumor_111, are taken.
    keep_excluded: whether `EXCLUDED` slides are kept and `RELABELLED` ones have
      the label of their name, as released.

  Raises:
    TileError: naming every slide that is missing or has no label.
  """
  excluded = {} if keep_excluded else EXCLUDED
  relabelled = {} if keep_excluded else RELABELLED
  try:
    files = list_slides(slides_dir)
  except SlideError as e:
    raise TileError(str(e)) from e
  reference = {} if reference_csv is None else read_reference(reference_csv)
  found, left_out, problems = {}, {}, []
  for path in files:
    name = slide_id(path).lower()
    if _NAME.fullmatch(name):
      if (other := found.setdefault(name, path)) != path:
        problems.append(f'{path}: the same slide as {other}')
    elif not name.endswith('_mask'):
      left_out[name] = 'not a name of CAMELYON16'
  if wanted is None:
    asked = (OFFICIAL - _OPTIONAL) | set(found)
  else:
    asked = {name.lower() for name in wanted}
    left_out |= {name: 'not asked for' for name in set(found) - asked}
  if reference_csv is None and wanted is None:
    asked = {name for name in asked if part(name) == 'train'}
    left_out |= {
      name: 'a test slide, and there is no reference'
      for name in set(found) - asked
    }
  left_out |= {n: why for n, why in excluded.items() if n in asked}
  asked -= set(excluded)
  unknown = sorted(n for n in asked if not _NAME.fullmatch(n))
  if unknown:
    problems.append(f'not slides of CAMELYON16: {", ".join(unknown)}')
  if missing := sorted(asked - set(found) - set(unknown)):
    problems.append(f'{len(missing)} slide(s) missing: {", ".join(missing)}')
  asked &= set(found)
  unlabelled = sorted(
    n for n in asked if part(n) == 'test' and n not in reference
  )
  if unlabelled:
    problems.append(f'no label in {reference_csv}: {", ".join(unlabelled)}')
  if problems:
    raise TileError.listing(problems, str(slides_dir))

  def label(name: str) -> str:
    stem = name.partition('_')[0]
    return relabelled.get(name, stem if stem in LABELS else reference[name])

  return Cohort(
    slides=tuple(
      KnownSlide(n, part(n), label(n), found[n]) for n in sorted(asked)
    ),
    left_out=left_out,
    relabelled=tuple(sorted(asked & set(relabelled))),
  )
