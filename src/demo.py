"""The smallest use of the model: ten pretended recordings of one second in, scores of 527 classes out."""
import torch

from models import ASTModel

if __name__ == '__main__':
    spectrograms = torch.rand(10, 100, 128)  # (batch, frames of 10 ms, mel bins), as if normalised
    model = ASTModel(label_dim=527, input_tdim=100, imagenet_pretrain=False)  # True loads, or downloads, DeiT's weights
    print(model(spectrograms).shape)
