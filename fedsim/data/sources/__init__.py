"""Dataset sources, one module each: ABOUT, HOW, find(root), load(root, ...) and, for some, fetch(root)."""
