"""Write checkpoints, and the folders for Hugging Face that export.py makes of them."""
import torch

import export
from models import ASTModel, save_checkpoint

# Two classes have the same name. One name has characters that mean something in Markdown or YAML.
LABELS = {'mids': ['/m/0', '/m/1', '/m/2', '/m/3'],
          'names': ['dog', 'rain, *heavy* | wet: "£"', 'dog', '- sea_waves']}
MEAN, STD = -5.678901234, 3.456789012


def save_model(path, size='tiny224', fstride=16, tstride=16, bins=32, frames=32, loss='BCE',
               labels=LABELS, **description):
    """Write a checkpoint of random weights whose logits differ between classes; return its path."""
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
