"""In a notebook: lines of epochs that a saved notebook keeps, a bar, and the curves inline."""

import nbformat
import pytest
from nbclient import NotebookClient

CODE = """
import cifarlab
run = cifarlab.train("demo", data="demo", out="run", overrides={
    "epochs": 2, "model.widths": [4, 8], "model.dense": 16, "data.validation_images": 4400, "device.threads": 1,
})
print(cifarlab.evaluate(run).accuracy)
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own packages
def test_a_notebook_shows_the_training_and_its_curves(tmp_path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)])
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = notebook.cells[0].outputs
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert [line.split()[0] for line in printed.splitlines() if "/2 " in line] == ["1/2", "2/2"]
    assert "accuracy" in printed
    assert 0 <= float(printed.splitlines()[-1]) <= 1
    shown = [output.data for output in outputs if output.output_type == "display_data"]
    assert any("image/png" in data for data in shown)
    assert (tmp_path / "run" / "recipe.json").exists()
