"""Checkpoints and the folders for Hugging Face that export.py makes of them, for tests."""
import torch

import export
from models import ASTModel, save_checkpoint

# Two classes share a name, and a name has what Markdown, YAML and tables take for their own.
LABELS = {'mids': ['/m/0', '/m/1', '/m/2', '/m/3'],
          'names': ['dog', 'rain, *heavy* | wet: "£"', 'dog', '- sea_waves']}
MEAN, STD = -5.678901234, 3.456789012


def save_model(path, size='tiny224', fstride=16, tstride=16, bins=32, frames=32, loss='BCE',
               labels=LABELS, **description):
    """Write a checkpoint of random weights, whose logits differ from class to class."""
    torch.manual_seed(0)
    model = ASTModel(len(labels['names']), fstride, tstride, bins, frames, False, model_size=size,
                     verbose=False)
    for parameter in model.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    save_checkpoint(model, path, **{'labels': labels, 'mean': MEAN, 'std': STD, 'loss': loss,
                                    'dataset': 'some_sounds', 'start': 'random', **description})
    return path


def export_folder(checkpoint, out, *options):
    """Write a folder for Hugging Face as export.py does; return its path."""
    export.main(['--checkpoint', str(checkpoint), '--format', 'transformers', '--out', str(out),
                 *options])
    return out
