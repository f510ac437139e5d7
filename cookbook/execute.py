"""Run the notebooks and store their output.

    python cookbook/execute.py            # all of them
    python cookbook/execute.py NAME.ipynb

The tests run them in the same way, in an empty folder, and compare the output.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "IS_TESTING": "1",  # otherwise LlamaIndex tries to use OpenAI
    "TQDM_DISABLE": "1",  # progress bars are not stored
    "PYTHONWARNINGS": "ignore:IProgress not found,ignore:The current version of langchain-community",
    "JUPYTER_PLATFORM_DIRS": "1",
    "OMP_NUM_THREADS": "1",  # sums have the same order on every machine
}
KEPT = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def execute(file: Path, folder: Path) -> Any:
    """Return the notebook with new outputs; it runs in `folder`."""
    os.environ.update(ENVIRONMENT)
    notebook = nbformat.read(file, as_version=4)
    notebook.metadata = nbformat.from_dict(KEPT)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", coalesce_streams=True, resources={"metadata": {"path": folder}}
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times of the run
    return notebook


def main() -> None:
    """Run the notebooks that are named on the command line."""
    for file in [FOLDER / name for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(execute(file, Path(folder)), file)
        print(file.name)


if __name__ == "__main__":
    main()
