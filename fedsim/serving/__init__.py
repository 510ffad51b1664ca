"""What comes out of a run, made to run on a device: one file from a raw example to its answer, small, and measured.

`source` reads a finished run back, `rows` says which of its rows may be looked at again, `pipeline` joins preprocessing and
model and traces them, `onnx_files` writes that for onnxruntime, `smaller` distils and prunes, `session` runs the files,
`estimate` says how long they take elsewhere, `write` does it all for a run, and `report` tells it.
"""

from fedsim.serving.write import Request, export

__all__ = ["Request", "export"]
