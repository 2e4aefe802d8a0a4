"""Flags for tests, which compile for longer than they run.

Without LLVM's passes, XLA's newer fusions and threads of its own, which other
workers lack, compiling takes half as long.
"""

from importlib import metadata

HASTY = (
  '--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1'
)
if metadata.version('jaxlib') < '0.11':  # XLA dropped it, and ends of it.
  HASTY += ' --xla_cpu_use_fusion_emitters=false'
