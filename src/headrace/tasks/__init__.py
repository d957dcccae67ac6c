"""What a person sends, turned into tensors and back."""
