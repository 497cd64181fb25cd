"""Score ten made-up recordings of one second: the smallest use of the model.

    cd src; python demo.py
"""
import torch

from models import ASTModel

if __name__ == '__main__':
    spectrograms = torch.rand(10, 100, 128)  # (batch, frames of 10 ms, mel bins), as if normalised
    model = ASTModel(label_dim=527, input_tdim=100, imagenet_pretrain=False)  # random weights
    print(model(spectrograms).shape)  # torch.Size([10, 527])
