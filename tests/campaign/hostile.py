"""Files made to do harm: bombs, links, code, nesting."""

FILES = {}
