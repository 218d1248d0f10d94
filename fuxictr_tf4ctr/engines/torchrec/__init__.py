"""TorchRec: embedding tables divided among ranks."""
