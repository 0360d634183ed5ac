"""A trained model on the Hugging Face Hub: what goes up, the card that goes with it, and the upload itself."""
