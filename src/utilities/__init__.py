"""Small tools that the training and the recipes share, one subject a file."""
