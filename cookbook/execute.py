"""Run the cookbook's notebooks and store what they print.

    python cookbook/execute.py            # all of them
    python cookbook/execute.py NAME.ipynb

The tests run them in the same way, in an empty folder, and compare.
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
    "IS_TESTING": "1",  # LlamaIndex would otherwise look for OpenAI
    "TQDM_DISABLE": "1",  # progress bars are nothing to store
    "PYTHONWARNINGS": "ignore:IProgress not found,ignore:The current version of langchain-community",
    "JUPYTER_PLATFORM_DIRS": "1",
    "OMP_NUM_THREADS": "1",  # the order of a sum is the same everywhere
}
KEPT = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def execute(file: Path, folder: Path) -> Any:
    """The notebook with the outputs it has now; `folder` is where it runs."""
    os.environ.update(ENVIRONMENT)
    notebook = nbformat.read(file, as_version=4)
    notebook.metadata = nbformat.from_dict(KEPT)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", coalesce_streams=True, resources={"metadata": {"path": folder}}
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times it ran
    return notebook


def main() -> None:
    """Run what the command line names."""
    for file in [FOLDER / name for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(execute(file, Path(folder)), file)
        print(file.name)


if __name__ == "__main__":
    main()
