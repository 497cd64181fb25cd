"""Run the notebook from top to bottom in a real Jupyter kernel."""
import nbformat
from nbclient import NotebookClient

NOTEBOOK = 'colab/AST_Inference_Demo.ipynb'


def run_notebook(root, monkeypatch, **environment):
    """Run the notebook without network; return its outputs. environment: variables to set."""
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    for name in ('http_proxy', 'https_proxy'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')  # nobody listens there
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    notebook = nbformat.read(root / NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name='python3',
                   resources={'metadata': {'path': str(root / 'colab')}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    return [output for cell in code for output in cell.outputs]


def texts_of(outputs):
    """Return the text of outputs: what was printed, or displayed as Markdown."""
    said = [output for output in outputs
            if output.output_type in ('stream', 'display_data', 'execute_result')]
    return '\n'.join(output.get('text') or output.data.get('text/markdown', '') for output in said)
