"""Maps of what trained models see in the tiles of slides."""
