"""Dataset sources, one module each: ABOUT, HOW, find(root), load(root, ...) and, where a plain download will do, fetch(root)."""
