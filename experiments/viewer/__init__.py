"""A local page that shows slides with the maps of a run over them."""
