"""Write trained models in the forms in which other programs take them."""
